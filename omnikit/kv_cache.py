"""Helpers for KV caches: how modules of transformers take them, and which can be joined to one batch."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn

_JOINING = ("DynamicLayer", "DynamicSlidingWindowLayer")
"""Names of the cache-layer classes of transformers whose sequences can be joined in one batch.

Another class declares this by an attribute `joins`.
"""


def cache_argument(module: nn.Module) -> str:
    """Return the name of the argument by which a module's `forward` takes a KV cache.

    This is `cache` since transformers 5.24, which warns of the former name, `past_key_values`.
    """
    return _cache_argument(type(module))


@functools.cache
def _cache_argument(kind: type[nn.Module]) -> str:
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


def layers(cache: Any) -> list[Any]:
    """Return the layers of a KV cache, the backbone's before the TTS adapter's; empty if it does not expose them."""
    # asked of the instance alone, since no contract promises this attribute
    found = [vars(part).get("layers") for part in (cache.llm, cache.tts) if part is not None]
    return [layer for each in found for layer in each] if all(isinstance(each, list) for each in found) else []


def can_join(cache: Any) -> bool:
    """Return whether sequences with KV caches of this kind can be decoded in one batch and leave it one by one.

    That needs layers that hold nothing but keys and values [B, G, C, E] of all positions, or of the last ones where the
    layer attends within a window.
    """
    found = layers(cache)
    return bool(found) and all(getattr(layer, "joins", type(layer).__name__ in _JOINING) for layer in found)
