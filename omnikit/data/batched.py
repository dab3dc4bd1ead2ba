"""Long sequences some items at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

BATCH = 512
"""Rows that are checked and written together."""
_Any = TypeVar("_Any")


def in_batches(items: Iterable[_Any], size: int = BATCH) -> Iterator[list[_Any]]:
    """Yield lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
