"""Networks that are built to be filled from a file: the random weights that they would begin with are not drawn, which
takes longer than to read the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

DRAWING = {"normal_", "uniform_", "erfinv_", "kaiming_uniform_"}
"""Functions and methods of torch, by name (transformers has its own of the same names); `trunc_normal_` and others call
them."""


class Undrawn(TorchFunctionMode):
    """A context in which parameters keep what their memory holds where they would be drawn at random.

    All of them have to be read from a file then, and nothing may be computed from them before.
    """

    def __torch_function__(
        self, function: Callable, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in DRAWING:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, nn.Parameter):
                return tensor
        return function(*args, **kwargs)
