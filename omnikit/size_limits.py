"""Limits on the size of a network that is built from numbers in a file that somebody else wrote."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks

MOST_COUNTED = 4096
"""Maximum number of layers, heads, codebooks or similar modules of a network; published ones have some hundreds."""
_MOST_MODULES = 20_000  # the largest published language models have about 2000, and 10000 with LoRA everywhere
_MODULES, _FOR_EACH = 2_000, 20  # for a network without weights, and for each tensor
# num_experts is excluded because Doge has 16384 experts in a layer; building them is bounded by `limited`
_COUNTS = re.compile(r"(?!\w*per_|num_experts$)(num_\w+|rank|\w*(layers?|blocks|heads?|quantizers|codebooks))")
_SPARE = 64 * 2**20  # numbers that parts build and drop again, such as codebooks after the last one in use
_TIMES = 4


def is_count(option: str) -> bool:
    """Return whether an option of this name counts modules, such as layers, each of which takes time to build."""
    return _COUNTS.fullmatch(option) is not None


def check_count(name: str, value: Any) -> None:
    """Refuse a number of layers, codebooks or similar modules that is above those of any real network.

    Raises:
        ValueError: the number is above `MOST_COUNTED`.
    """
    if isinstance(value, int) and value > MOST_COUNTED:
        raise ValueError(f"{name} {value}: must be at most {MOST_COUNTED}")


def check_counts(name: str, options: Mapping[str, Any]) -> None:
    """Raise if an option that counts modules (see `is_count`) exceeds `MOST_COUNTED`; the message names `name`."""
    for option, value in options.items():
        if is_count(str(option)):
            check_count(f"{name}.{option}", value)


@contextmanager
def limited(weights: Collection[Tensor], more: float = 0) -> Iterator[None]:
    """Context manager that bounds the size of networks that the calling thread builds inside the block.

    Args:
        weights: tensors that the network will be filled with.
        more: number of further numbers that it will be filled with from elsewhere; infinity = unknown.

    Raises:
        ValueError: the network gets many more modules or numbers than these weights can fill; raised while it is built.
    """
    counted = _Counted(
        modules=min(_MOST_MODULES, _MODULES + _FOR_EACH * len(weights)),
        numbers=_SPARE + _TIMES * (more + sum(tensor.numel() for tensor in weights)),
    )
    with ExitStack() as stack:
        for register, count in (
            (hooks.register_module_module_registration_hook, counted.add_module),
            (hooks.register_module_parameter_registration_hook, counted.add_tensor),
            (hooks.register_module_buffer_registration_hook, counted.add_tensor),
        ):
            stack.callback(register(count).remove)
        yield


def check_memory(needed: int, what: str) -> None:
    """Refuse an allocation that is larger than this machine's memory.

    Args:
        needed: number of bytes.
        what: owner of the bytes, for the error.

    Raises:
        ValueError: the memory is smaller.
    """
    if not hasattr(os, "sysconf"):  # Windows
        return
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(f"{what}: needs {needed / 2**30:.1f} GiB of memory, this machine has {there / 2**30:.1f}")


class _Counted:
    def __init__(self, modules: int, numbers: float):
        self.most_modules, self.most_numbers, self.thread = modules, numbers, threading.get_ident()
        self.modules = self.numbers = 0

    def add_module(self, owner: nn.Module, name: str, child: Any) -> None:
        self._add(modules=1)

    def add_tensor(self, owner: nn.Module, name: str, tensor: Tensor | None) -> None:
        self._add(numbers=0 if tensor is None else tensor.numel())

    def _add(self, modules: int = 0, numbers: int = 0) -> None:
        if threading.get_ident() != self.thread:  # torch calls the hooks in all threads
            return
        self.modules, self.numbers = self.modules + modules, self.numbers + numbers
        if self.modules > self.most_modules:
            raise ValueError(f"its options make a network of more than {self.most_modules} modules")
        if self.numbers > self.most_numbers:
            raise ValueError("its options make a network that is much larger than its weights")
