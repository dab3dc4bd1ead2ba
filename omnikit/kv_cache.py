"""Caches of keys and values: how modules of transformers take them, and which can be joined to a batch."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn

_JOINING = ("DynamicLayer", "DynamicSlidingWindowLayer")
"""Classes of transformers; another class of layer says so by an attribute `joins`."""


def cache_argument(module: nn.Module) -> str:
    """Return the name by which a module's `forward` takes a cache: `cache` since transformers 5.24, which warns of the
    name used before it, `past_key_values`."""
    return _cache_argument(type(module))


@functools.cache
def _cache_argument(kind: type[nn.Module]) -> str:
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


def layers(cache: Any) -> list[Any]:
    """Return the layers of a cache, those of all its parts one after another; empty where it does not show them."""
    # asked of the instance alone, since no contract promises this attribute
    found = [vars(part).get("layers") for part in (cache.llm, cache.tts) if part is not None]
    return [layer for each in found for layer in each] if all(isinstance(each, list) for each in found) else []


def can_join(cache: Any) -> bool:
    """Tell whether sequences of several caches can go on in one batch, and single ones leave it: every layer keeps keys
    and values [B, G, C, E] of all positions, or of the last ones where it attends within a window, and nothing else."""
    found = layers(cache)
    return bool(found) and all(getattr(layer, "joins", type(layer).__name__ in _JOINING) for layer in found)
