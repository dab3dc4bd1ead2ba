"""Networks that are built to be filled from a file, or on the meta device for their shapes alone: values that nobody
will read are not computed, because that takes longer than to read the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWING = {"normal_", "uniform_", "erfinv_", "kaiming_uniform_"}
"""Functions and methods of torch, by name (transformers has its own of the same names); `trunc_normal_` and others call
them."""


class SkipInit(TorchFunctionMode):
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


def empty_on_meta(shape: tuple[int, ...], make: Callable[[], Tensor]) -> Tensor:
    """Return `make()`, a tensor of that shape; on the meta device, which has shapes alone, an empty one instead.

    There even a product is computed by Python code of torch that imports its compiler, which takes a second.
    """
    return torch.empty(shape) if torch.get_default_device().type == "meta" else make()
