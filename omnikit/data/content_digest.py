"""Identity of recordings and files for caches: address, size and modification time, and a digest of the content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from omnikit.data.batched import in_batches

THREADS = 4  # reading files is bound by the disk, not by the processor
TOGETHER = 2048
"""Number of files or embedded recordings whose size and time are read before their digests are looked up."""
_STATS = 64  # files per task of a thread

Stamp = tuple[int, int]
"""Size of a file in bytes and its modification time in nanoseconds."""
UNREADABLE: Stamp = (-1, -1)
"""Size and modification time that stand for a file that does not exist or cannot be accessed."""


@dataclass(frozen=True, slots=True)
class Content:
    """A file, or a recording embedded in a table, whose content can be identified by a digest.

    Args:
        address: key in the ledger: the absolute path, or the table's version, the column and the recording's key.
        path: path of the file; None for an embedded recording.
        read: returns the bytes of an embedded recording.
        fixed: whether the bytes at this address never change because the address names the version of their table.
    """

    address: str
    path: str | None = None
    read: Callable[[], bytes] | None = None
    fixed: bool = False

    @classmethod
    def of_file(cls, path: str | Path) -> Content:
        return cls(os.path.abspath(path), path=str(path))

    def stamp(self) -> Stamp | None:
        """Return the size and modification time by which a change of the content is noticed.

        Returns:
            `UNREADABLE` for a file that cannot be accessed, zeros for embedded bytes that never change, and None for
            embedded bytes whose changes cannot be noticed.
        """
        if self.path is None:
            return (0, 0) if self.fixed else None
        try:
            found = os.stat(self.path)
        except (OSError, ValueError):  # ValueError: the path holds a null character
            return UNREADABLE
        return found.st_size, found.st_mtime_ns

    def digest(self) -> bytes:
        """Return the BLAKE2b digest (16 bytes) of the file or of the embedded recording.

        Raises:
            OSError: the file cannot be read.
        """
        if self.path is None:
            return digest_of(self.read())
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def digest_of(data: bytes) -> bytes:
    """Return the BLAKE2b digest (16 bytes) of a byte string."""
    return hashlib.blake2b(data, digest_size=16).digest()


def stamped(contents: Iterable[Content], pool: ThreadPoolExecutor) -> Iterator[list[tuple[Content, Stamp | None]]]:
    """Yield lists of up to `TOGETHER` files or embedded recordings, each with its size and modification time."""
    for some in in_batches(contents, TOGETHER):
        stamps = chain.from_iterable(pool.map(_stamps, in_batches(some, _STATS)))
        yield list(zip(some, stamps, strict=True))


def _stamps(contents: Sequence[Content]) -> list[Stamp | None]:
    return [content.stamp() for content in contents]
