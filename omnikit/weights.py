"""Reading and writing of weights, as safetensors only, so that reading a file never runs code in it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from omnikit.errors import MissingWeights, one_line
from omnikit.files import whole_file
from omnikit.old_names import new_weight
from omnikit.untrusted_files import LARGEST_JSON, check_regular

FILE_NAME = "model.safetensors"
LORA = ".lora_"
"""Text that marks the names of the weights that peft's LoRA adds to a model.

LoRA changes nothing before it is trained, so a file that was written without LoRA may lack all of them.
"""
_SHOWN = 3
_LONGEST_NAME = 200
_LENGTH_BYTES = 8


Stored = dict[str, Tensor]


def load_into(
    module: nn.Module,
    path: str | Path,
    fit: Callable[[Stored], Stored] | None = None,
    *,
    mapped: bool = False,
    whole: bool = False,
    without: Collection[str] = (),
) -> None:
    """Copy stored weights into a module, each converted to the type that the module has.

    Tensors of the module that are on the meta device stay there, and their weights are not read.

    Args:
        path: a safetensors file, or a folder with `model.safetensors`.
        fit: selects from the stored tensors those of the module; None = the module takes all of them.
        mapped: leave weights whose stored type is the module's in the file, which is read as they are used: an
            embedding table takes memory only for the rows that were looked up. Such weights must not be changed.
        whole: no weight may be missing, not even all of LoRA.
        without: submodules of which the file must have no weights; theirs stay as they are.

    Raises:
        ValueError: the file is missing or not safetensors; names, shapes or kinds of numbers differ; or numbers are not
            finite (not checked for weights that stay in the file). The message names the file and the weights.
    """
    file = weights_file(path)
    own = _own(module, without)
    nowhere = {name for name, tensor in own.items() if tensor.is_meta}
    own = {name: tensor for name, tensor in own.items() if name not in nowhere}
    stored = {name: tensor for name, tensor in stored_tensors(file).items() if name not in nowhere}
    stored = stored if fit is None else fit(stored)
    _refuse_differences(module, own, stored, file, whole)
    stay = {name for name, tensor in stored.items() if mapped and own[name].dtype == tensor.dtype}
    with torch.no_grad():
        refuse_not_finite({name: stored[name] for name in stored.keys() - stay}, file)
        for name in stored.keys() - stay:
            own[name].copy_(stored[name])
        if stay:  # the file is opened again, since this mapping would keep in memory what was read for copying above
            with safe_open(file, "pt") as reader:
                for name in reader.keys():  # noqa: SIM118 (no mapping)
                    if (new := new_weight(name)) in stay:
                        own[new].data = reader.get_tensor(name)


def check_fits(module: nn.Module, stored: Stored, file: str | Path, without: Collection[str] = ()) -> None:
    """Refuse stored weights whose names, shapes or kinds of numbers differ from those of a module.

    Args:
        module: module to compare with, which may be on the meta device.
        stored: weights from `stored_tensors`.
        file: path of their file, for errors.
        without: submodules of which there must be no stored weights.

    Raises:
        ValueError: they differ, or some are missing; see `load_into` with `whole`.
    """
    _refuse_differences(module, _own(module, without), stored, file, whole=True)


def stored_tensors(path: str | Path) -> Stored:
    """Return the tensors of a safetensors file by name; their values stay in the file until they are used.

    Args:
        path: a safetensors file, or a folder with `model.safetensors`.

    Raises:
        ValueError: the file is missing or not safetensors.
    """
    file = weights_file(path)
    try:
        _check_header(file)
        with safe_open(file, "pt") as reader:
            return {new_weight(name): reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{file}: not a safetensors file ({one_line(error)})") from None


def save_weights(
    module: nn.Module, path: str | Path, dtype: torch.dtype = torch.bfloat16, weights: Stored | None = None
) -> Path:
    """Write the weights of a module to a safetensors file, tied tensors once.

    Args:
        path: a file that ends in `.safetensors`, or a folder, which gets `model.safetensors`.
        dtype: type that floating-point weights are converted to.
        weights: tensors by name in place of the module's own.

    Returns:
        Path of the file, which is complete or absent.

    Raises:
        ValueError: some weights are not finite, or the disk is full; an existing file stays as it is.
    """
    file = Path(path) if str(path).endswith(".safetensors") else Path(path) / FILE_NAME
    weights = module.state_dict(keep_vars=True) if weights is None else weights
    tensors = {name: _stored(tensor, dtype) for name, tensor in _untied(weights).items()}
    refuse_not_finite(tensors, file)
    with whole_file(file, SafetensorError) as aside:
        aside.touch()
        mode = aside.stat().st_mode
        save_file(tensors, aside)
        aside.chmod(mode)  # safetensors 0.8 replaces the file by one that only its owner can read
    return file


def weights_file(path: str | Path) -> Path:
    """Return the safetensors file at a path, or in the folder at that path.

    Raises:
        MissingWeights: there is none.
    """
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise MissingWeights(
            f"weights {path}: no such file" if file == Path(path) else f"{path}: {FILE_NAME} is missing"
        )
    check_regular(file)
    return file


def _own(module: nn.Module, without: Collection[str]) -> Stored:
    """Return the tensors of a module by name, without those of some of its submodules."""
    state = module.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if name.partition(".")[0] not in without}


def _check_header(file: Path) -> None:
    """Refuse a safetensors file whose header is too long; its first eight bytes give the header's length in bytes."""
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    if length > LARGEST_JSON:
        raise SafetensorError(f"its header would have {length} bytes, more than {LARGEST_JSON}")


def _untied(tensors: Stored) -> Stored:
    """Return tensors by name, with tied ones under their first name only."""
    seen: set[int] = set()
    state = {}
    for name, tensor in tensors.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu()
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous().clone()


def _refuse_differences(module: nn.Module, own: Stored, stored: Stored, file: str | Path, whole: bool) -> None:
    problems = _differences(own, stored, whole)
    if problems:
        raise ValueError(f"{file} does not fit {type(module).__name__}: {'; '.join(problems)}")


def refuse_not_finite(tensors: Stored, where: str | Path) -> None:
    """Refuse tensors that hold NaN or infinity.

    Args:
        tensors: tensors by name.
        where: owner of the tensors, for the error.

    Raises:
        ValueError: some tensors do; the message names them.
    """
    names = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if names:
        raise ValueError(f"{where}: has numbers that are not finite (NaN or infinity) in {some_names(names)}")


def _is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity, computed in one pass from its minimum and maximum."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    tensor = tensor.float() if tensor.itemsize == 1 else tensor  # torch cannot compare numbers of 8 bits
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _kind(dtype: torch.dtype) -> str:
    if dtype is torch.bool:
        return "true or false"
    return "floating-point" if dtype.is_floating_point else "complex" if dtype.is_complex else "whole"


def _differences(own: dict[str, Tensor], stored: dict[str, Tensor], whole: bool) -> list[str]:
    covered = {id(own[name]) for name in stored if name in own}
    before_lora = not whole and not any(LORA in name for name in stored)
    missing = [
        name for name, tensor in own.items() if id(tensor) not in covered and not (before_lora and LORA in name)
    ]
    unknown = [name for name in stored if name not in own]
    shapes = [
        f"{name} is {list(tensor.shape)} where {list(own[name].shape)} is needed"
        for name, tensor in stored.items()
        if name in own and own[name].shape != tensor.shape
    ]
    types = [
        f"{name} has {_kind(tensor.dtype)} values where {_kind(own[name].dtype)} ones are needed"
        for name, tensor in stored.items()
        if name in own and _kind(own[name].dtype) != _kind(tensor.dtype)
    ]
    kinds = (("lacks ", missing), ("has the unknown ", unknown), ("", shapes), ("", types))
    return [words + some_names(names) for words, names in kinds if names]


def some_names(names: list[str]) -> str:
    """Return the first few of some names of weights, and the number of the others, for an error message."""
    more = len(names) - _SHOWN
    return ", ".join(name[:_LONGEST_NAME] for name in islice(names, _SHOWN)) + (f" and {more} more" if more > 0 else "")
