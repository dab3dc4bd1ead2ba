"""Weights and optimiser states in checkpoints: copied to CPU memory to be written, and read by any number of processes.

Where processes share the weights (FSDP2), each of them writes its rows of each tensor to a file of its own. One
process, or another number of them, reads those rows that it needs from all files.

A checkpoint holds what training changes: parameters that are trained, and buffers of parts that are not frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from omnikit.torchrun import Share
from omnikit.untrusted_models import read_pickle
from omnikit.weights import some_names

_ROWS, _FIRST, _SHAPE = "rows", "first row", "whole shape"
"""Keys of a mapping that stands in a file for one process's rows of a tensor."""


class HostCopies:
    """Copies of states in CPU memory; the memory of the last copy is used again for the next one.

    Memory for tensors of a GPU is pinned, which makes copying several times as fast.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[Any, ...], Tensor] = {}

    def copy(self, key: str, state: Any) -> Any:
        """Return a copy of nested mappings and lists of tensors and plain values, complete when this returns.

        A tensor of which this process has a shard is replaced by a mapping with its rows, the number of the first one
        and the shape of the whole tensor. Tied tensors stay tied.

        Args:
            key: name of the state; a later copy of a state of this name overwrites this one.
        """
        copied = self._copy((key,), state, {})
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied

    def _copy(self, key: tuple[Any, ...], state: Any, seen: dict[int, Any]) -> Any:
        if isinstance(state, Mapping):
            return {name: self._copy((*key, name), value, seen) for name, value in state.items()}
        if isinstance(state, list | tuple):
            return [self._copy((*key, number), value, seen) for number, value in enumerate(state)]
        if not isinstance(state, Tensor):
            return state
        if id(state) not in seen:
            seen[id(state)] = self._copy_tensor(key, state)
        return seen[id(state)]

    def _copy_tensor(self, key: tuple[Any, ...], tensor: Tensor) -> Any:
        own, tensor = rows_of(tensor), tensor.detach()
        buffer = self.buffers.get(key)
        if buffer is None or buffer.shape != own.shape or buffer.dtype != own.dtype:
            buffer = self.buffers[key] = torch.empty(own.shape, dtype=own.dtype, pin_memory=own.is_cuda)
        buffer.copy_(own, non_blocking=True)
        if not isinstance(tensor, DTensor):
            return buffer
        return {_ROWS: buffer, _FIRST: first_row(tensor), _SHAPE: list(tensor.shape)}


def rows_of(tensor: Tensor) -> Tensor:
    """Return those rows of a tensor that this process has, which share its memory: all, unless it is sharded."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def first_row(tensor: DTensor) -> int:
    """Return the number of the first row that this process has of a tensor that is sharded by rows.

    All processes but the last ones have equally many rows, as after `torch.chunk`.
    """
    if tuple(tensor.placements) != (Shard(0),):
        raise NotImplementedError(f"a checkpoint of a tensor with the placements {tensor.placements}")
    rows, processes = tensor.shape[0], tensor.device_mesh.size()
    return min(tensor.device_mesh.get_local_rank() * -(-rows // processes), rows)


def is_sharded(state: Any) -> bool:
    """Return whether this process has only a shard of any tensor in nested mappings and lists."""
    values = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return isinstance(state, DTensor) or any(map(is_sharded, values))


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module that training changes: trained parameters, and buffers of parts not frozen."""
    return _selected(module, trained=True)


def frozen_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module that training leaves as they are, by name."""
    return _selected(module, trained=False)


def _selected(module: nn.Module, trained: bool) -> dict[str, Tensor]:
    frozen = getattr(module, "frozen", ())
    return {
        name: tensor
        for name, tensor in module.state_dict(keep_vars=True).items()
        if trained == (tensor.requires_grad if isinstance(tensor, nn.Parameter) else name.split(".")[0] not in frozen)
    }


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module by name, on the CPU and gathered from all processes where they share them.

    All processes have to call it; all but the main process get an empty dict if weights are shared.
    """
    state = module.state_dict(keep_vars=True)
    if not is_sharded(state):
        return state
    main, whole, gathered = Share.of_torchrun().rank == 0, {}, {}
    for name, tensor in state.items():
        if id(tensor) not in gathered:  # tied tensors stay tied
            found = tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
            gathered[id(tensor)] = found.cpu() if main else None
        whole[name] = gathered[id(tensor)]
    return whole if main else {}


def read_states(files: Iterable[Path]) -> list[Any]:
    """Return the states in the files that the processes wrote for one object; values are read as they are used.

    Raises:
        pickle.UnpicklingError: a file holds other objects than tensors and plain values.
    """
    return [read_pickle(file, mapped=True) for file in files]


def load_module(module: nn.Module, states: Sequence[Mapping[str, Any]], with_frozen: bool, where: str | Path) -> None:
    """Copy stored weights into a module, each process those rows that it has.

    Args:
        module: module whose parameters may be sharded.
        states: states of all files, see `read_states`.
        with_frozen: whether frozen weights are stored, too, as older versions did.
        where: name of the checkpoint for errors.

    Raises:
        ValueError: stored weights are missing or unknown, or have another shape.
    """
    own = module.state_dict(keep_vars=True) if with_frozen else trained_state(module)
    problems = _differences(own, states[0])
    if problems:
        raise ValueError(f"{where}: does not fit {type(module).__name__}: {'; '.join(problems)}")
    with torch.no_grad():
        for name, tensor in own.items():
            _read_into(tensor, [state[name] for state in states])


def load_optimizer(optimizer: Optimizer, states: Sequence[Mapping[str, Any]]) -> None:
    """Restore an optimiser whose parameters may be sharded otherwise than when its state was stored."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    restored = {}
    for number, stored in states[0]["state"].items():
        parameter = parameters[number]
        restored[number] = {
            name: _like(parameter, [state["state"][number][name] for state in states])
            if isinstance(value, Mapping) or (isinstance(value, Tensor) and value.shape == parameter.shape)
            else value.clone() if isinstance(value, Tensor) else value
            for name, value in stored.items()
        }  # fmt: skip
    optimizer.load_state_dict({**states[0], "state": restored})


def _like(parameter: Tensor, pieces: Sequence[Any]) -> Tensor:
    """Return a tensor with stored values that is sharded like a parameter."""
    stored = pieces[0][_ROWS] if isinstance(pieces[0], Mapping) else pieces[0]
    made = torch.empty_like(parameter.detach(), dtype=stored.dtype)
    _read_into(made, pieces)
    return made


def _read_into(target: Tensor, pieces: Sequence[Any]) -> None:
    """Copy into a tensor its rows from the pieces that the processes stored of it; a whole tensor is one piece."""
    own = rows_of(target)
    if not isinstance(pieces[0], Mapping) and not isinstance(target, DTensor):
        own.copy_(pieces[0])
        return
    begin = first_row(target) if isinstance(target, DTensor) else 0
    for piece in pieces if isinstance(pieces[0], Mapping) else [{_ROWS: pieces[0], _FIRST: 0}]:
        rows, first = piece[_ROWS], piece[_FIRST]
        low, high = max(begin, first), min(begin + len(own), first + len(rows))
        if low < high:
            own[low - begin : high - begin].copy_(rows[low - first : high - first])


def _differences(own: Mapping[str, Tensor], stored: Mapping[str, Any]) -> list[str]:
    shapes = {name: tuple(one[_SHAPE] if isinstance(one, Mapping) else one.shape) for name, one in stored.items()}
    lacks = [name for name in own if name not in shapes]
    unknown = [name for name in shapes if name not in own]
    other = [name for name in shapes if name in own and shapes[name] != tuple(own[name].shape)]
    kinds = (("lacks ", lacks), ("has the unknown ", unknown), ("has another shape of ", other))
    return [words + some_names(names) for words, names in kinds if names]
