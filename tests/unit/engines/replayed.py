"""A stand-in for CUDA graphs that records and replays operations on a CPU.

It records the operations of a call rather than its Python code, and replays them on the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.is_nonzero.default}
"""Operations of torch that make the host wait for a value from the device."""


class ReplayedOperations:
    """A stand-in for `omnikit.cuda_graphs.CudaGraphs` that counts runs, recordings and replays."""

    def __init__(self) -> None:
        self.runs = self.recorded = self.replays = 0

    def run(self, call: Callable[[], None]) -> None:
        self.runs += 1
        call()

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        recording = _Recording()
        with recording:
            call()
        recording.undo()

        def replay() -> None:
            self.replays += 1
            recording.replay()

        return replay

    def clear(self) -> None:
        """Do nothing, because a CPU has no memory pool of CUDA graphs to replace."""


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, Any]] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with self:  # a composite operation is recorded as the operations it consists of
            if (whole := operation.decompose(*args, **kwargs)) is not NotImplemented:
                return whole
        assert operation not in ASKING, f"{operation} makes the host wait"
        for number, argument in enumerate(operation._schema.arguments):
            given = args[number] if number < len(args) else kwargs.get(argument.name)
            if argument.is_write:
                written = [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)]
                self.before += [(tensor, tensor.clone()) for tensor in written]
        out = operation(*args, **kwargs)
        if not operation.is_view:
            self.operations.append((operation, args, kwargs, out))
        return out

    def undo(self) -> None:
        """Restore all tensors that the recorded call has written, because recording a CUDA graph computes nothing."""
        for tensor, before in reversed(self.before):
            tensor.copy_(before)

    def replay(self) -> None:
        for operation, args, kwargs, out in self.operations:
            for old, new in zip(tree_leaves(out), tree_leaves(operation(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)
