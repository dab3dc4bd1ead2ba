"""Recordings and files as caches know them: where they are, how large and how old they are, and what is in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from omnikit.data.batched import in_batches

THREADS = 4  # reading waits on the disk more than on the processor
TOGETHER = 2048
"""Contents that are looked at together."""
_STATS = 64  # of files, in one task of a thread

Stamp = tuple[int, int]
"""Size in bytes and modification time in nanoseconds."""
UNREADABLE: Stamp = (-1, -1)


@dataclass(frozen=True, slots=True)
class Content:
    """A file, or bytes that stand in a table.

    Args:
        address: what the ledger calls it: the absolute path, or the version of the table and the key.
        read: returns the bytes of what is no file.
        fixed: bytes of this address never change, because the address names the version of their table.
    """

    address: str
    path: str | None = None
    read: Callable[[], bytes] | None = None
    fixed: bool = False

    @classmethod
    def of_file(cls, path: str | Path) -> Content:
        return cls(os.path.abspath(path), path=str(path))

    def stamp(self) -> Stamp | None:
        """Size and time of a file, `UNREADABLE` where there is none; of bytes that never change zeros; None for bytes
        of which nothing tells whether they have changed."""
        if self.path is None:
            return (0, 0) if self.fixed else None
        try:
            found = os.stat(self.path)
        except (OSError, ValueError):  # the latter: no file can have such a name
            return UNREADABLE
        return found.st_size, found.st_mtime_ns

    def digest(self) -> bytes:
        """Return the BLAKE2b digest [16 bytes] of the content.

        Raises:
            OSError: the file cannot be read.
        """
        if self.path is None:
            return digest_of(self.read())
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def digest_of(data: bytes) -> bytes:
    """Return the BLAKE2b digest [16 bytes] of bytes."""
    return hashlib.blake2b(data, digest_size=16).digest()


def stamped(contents: Iterable[Content], pool: ThreadPoolExecutor) -> Iterator[list[tuple[Content, Stamp | None]]]:
    """Yield contents with their stamps, `TOGETHER` at a time."""
    for some in in_batches(contents, TOGETHER):
        stamps = chain.from_iterable(pool.map(_stamps, in_batches(some, _STATS)))
        yield list(zip(some, stamps, strict=True))


def _stamps(contents: Sequence[Content]) -> list[Stamp | None]:
    return [content.stamp() for content in contents]
