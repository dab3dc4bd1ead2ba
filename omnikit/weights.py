"""Weights on disk: safetensors only, so that reading a file never runs what is in it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from omnikit.errors import one_line
from omnikit.files import whole_file
from omnikit.old_names import new_weight
from omnikit.untrusted_files import LARGEST_JSON, check_regular

FILE_NAME = "model.safetensors"
LORA = ".lora_"
"""In the names that peft adds to a model; they start as no change, so weights from before may lack all of them."""
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
) -> None:
    """Copy weights into `module`, each cast to the type that the module has. What of it is on the meta device stays
    there, and its weights are not read.

    Args:
        path: a safetensors file, or a folder with `model.safetensors`.
        fit: takes from the stored tensors those that `module` wants, where it does not want all of them.
        mapped: weights stored in the type that the module has stay in the file, which is read where they are needed:
            a table of embeddings takes memory for the rows that were looked up. They must not be changed.
        whole: nothing may be missing, not even all of LoRA.

    Raises:
        ValueError: no such file, not safetensors, names, shapes or kinds of numbers that differ, or numbers that are
            not finite (of weights that stay in the file, this is not looked for); the message names file and names.
    """
    file = weights_file(path)
    own = module.state_dict(keep_vars=True)
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
        if stay:  # opened anew: what was read above for copying would stay in memory with the rest
            with safe_open(file, "pt") as reader:
                for name in reader.keys():  # noqa: SIM118 (no mapping)
                    if (new := new_weight(name)) in stay:
                        own[new].data = reader.get_tensor(name)


def check_fits(module: nn.Module, stored: Stored, file: str | Path) -> None:
    """Compare names, shapes and kinds of numbers of weights with those of a module, which may be on the meta device.

    Args:
        stored: `stored_tensors` of the file.
        file: its path, for errors.

    Raises:
        ValueError: see `load_into`, with `whole`.
    """
    _refuse_differences(module, module.state_dict(keep_vars=True), stored, file, whole=True)


def stored_tensors(path: str | Path) -> Stored:
    """The tensors of a file by name. Their values stay in the file until they are needed.

    Args:
        path: see `load_into`.

    Raises:
        ValueError: no such file, or not safetensors.
    """
    file = weights_file(path)
    try:
        _check_header(file)
        with safe_open(file, "pt") as reader:
            return {new_weight(name): reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{file}: not a safetensors file ({one_line(error)})") from None


def save_weights(module: nn.Module, path: str | Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write the weights of `module`, floating-point ones as `dtype`, tensors that are tied once.

    Args:
        path: a file that ends in `.safetensors`, or a folder (it gets `model.safetensors`).

    Returns:
        The file; it is whole or absent.

    Raises:
        ValueError: some are not finite, or the disk is full; a file that is there stays as it is.
    """
    file = Path(path) if str(path).endswith(".safetensors") else Path(path) / FILE_NAME
    tensors = {name: _stored(tensor, dtype) for name, tensor in _untied(module).items()}
    refuse_not_finite(tensors, file)
    with whole_file(file, SafetensorError) as aside:
        save_file(tensors, aside)
    return file


def weights_file(path: str | Path) -> Path:
    """The safetensors file that a path means.

    Raises:
        ValueError: there is none.
    """
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise ValueError(f"weights {path}: no such file" if file == Path(path) else f"{path}: {FILE_NAME} is missing")
    check_regular(file)
    return file


def _check_header(file: Path) -> None:
    """The file's first eight bytes say how many bytes of names and shapes follow."""
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    if length > LARGEST_JSON:
        raise SafetensorError(f"its header would have {length} bytes, more than {LARGEST_JSON}")


def _untied(module: nn.Module) -> dict[str, Tensor]:
    """The state without the second and later names of a tied tensor."""
    seen: set[int] = set()
    state = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
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
    """Refuse tensors by name that hold NaN or infinity.

    Args:
        where: who has them, for the error.

    Raises:
        ValueError: some do; the message names them.
    """
    names = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if names:
        raise ValueError(f"{where}: has numbers that are not finite (NaN or infinity) in {_some(names)}")


def _is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity, judged in one pass by its smallest and largest number."""
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
    return [words + _some(names) for words, names in kinds if names]


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(name[:_LONGEST_NAME] for name in islice(names, _SHOWN)) + (f" and {more} more" if more > 0 else "")
