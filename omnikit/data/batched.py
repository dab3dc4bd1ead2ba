"""Splits a long iterable into batches without holding all of it in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

BATCH = 512
"""Number of manifest entries that are checked and written together."""
_Any = TypeVar("_Any")


def in_batches(items: Iterable[_Any], size: int = BATCH) -> Iterator[list[_Any]]:
    """Yield the items of an iterable in lists of `size`; the last list may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
