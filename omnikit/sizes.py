"""The sizes that a part of a published network can be built in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PUBLISHED, TINY = "published", "tiny"
SIZES = (PUBLISHED, TINY)
"""`published`: the numbers as they are given; `tiny`: the same class with few and narrow layers, for trials."""


def sized(numbers: Mapping[str, Any], tiny: Mapping[str, Any], size: str) -> dict[str, Any]:
    """A network's numbers, those of `tiny` in their place where `size` is tiny.

    Raises:
        ValueError: no such size.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r}: no such size (choices: {', '.join(SIZES)})")
    return {**numbers, **tiny} if size == TINY else dict(numbers)
