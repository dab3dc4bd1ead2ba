"""Building networks without computing their random initial weights.

A network that is filled from a file, or built on the meta device for its shapes alone, does not need them, and
computing them takes longer than reading the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWING = {"normal_", "uniform_", "erfinv_", "kaiming_uniform_"}
"""Names of the functions and methods of torch, and of transformers' variants, that draw initial weights.

Others, such as `trunc_normal_`, call these.
"""


class SkipInit(TorchFunctionMode):
    """Context manager in which parameters are not initialised at random but keep the values that their memory holds.

    All of them have to be read from a file afterwards, and nothing may be computed from them before.
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
    """Return the tensor that `make()` computes; on the meta device, which has shapes only, an empty one of that shape.

    There, even a product is computed by Python code of torch that imports its compiler, which takes a second.
    """
    return torch.empty(shape) if torch.get_default_device().type == "meta" else make()
