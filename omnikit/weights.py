"""Weights on disk: safetensors only, so that reading a file never runs what is in it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from omnikit.files import whole_file

FILE_NAME = "model.safetensors"
LORA = ".lora_"
"""In the names that peft adds to a model; they start as no change, so weights from before may lack all of them."""
_SHOWN = 3


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
        ValueError: no such file, not safetensors, or names and shapes that differ; the message names file and names.
    """
    file = weights_file(path)
    own = module.state_dict(keep_vars=True)
    nowhere = {name for name, tensor in own.items() if tensor.is_meta}
    own = {name: tensor for name, tensor in own.items() if name not in nowhere}
    try:
        with safe_open(file, "pt") as reader:
            stored = {name: reader.get_tensor(name) for name in reader.keys() if name not in nowhere}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file}: not a safetensors file ({error})") from None
    stored = stored if fit is None else fit(stored)
    problems = _differences(own, stored, whole)
    if problems:
        raise ValueError(f"{file} does not fit {type(module).__name__}: {'; '.join(problems)}")
    stay = [name for name, tensor in stored.items() if mapped and own[name].dtype == tensor.dtype]
    with torch.no_grad():
        for name in stored.keys() - set(stay):
            own[name].copy_(stored[name])
        if stay:  # opened anew: what was read above for copying would stay in memory with the rest
            with safe_open(file, "pt") as reader:
                for name in stay:
                    own[name].data = reader.get_tensor(name)


def save_weights(module: nn.Module, path: str | Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write the weights of `module`, floating-point ones as `dtype`, tensors that are tied once.

    Args:
        path: a file that ends in `.safetensors`, or a folder (it gets `model.safetensors`).

    Returns:
        The file; it is whole or absent.

    Raises:
        ValueError: the disk is full.
    """
    file = Path(path) if str(path).endswith(".safetensors") else Path(path) / FILE_NAME
    with whole_file(file, SafetensorError) as aside:
        save_file({name: _stored(tensor, dtype) for name, tensor in _untied(module).items()}, aside)
    return file


def weights_file(path: str | Path) -> Path:
    """The safetensors file that a path means.

    Raises:
        ValueError: there is none.
    """
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"weights {path}: no such file" if file == Path(path) else f"{path}: {FILE_NAME} is missing")
    return file


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
    kinds = (("lacks ", missing), ("has the unknown ", unknown), ("", shapes))
    return [words + _some(names) for words, names in kinds if names]


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(islice(names, _SHOWN)) + (f" and {more} more" if more > 0 else "")
