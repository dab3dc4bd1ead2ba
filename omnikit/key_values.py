"""How modules of transformers take a cache of keys and values."""

from __future__ import annotations

import functools
import inspect

from torch import nn


def cache_argument(module: nn.Module) -> str:
    """Return the name by which a module's `forward` takes a cache: `cache` since transformers 5.24, which warns of the
    name used before it, `past_key_values`."""
    return _cache_argument(type(module))


@functools.cache
def _cache_argument(kind: type[nn.Module]) -> str:
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"
