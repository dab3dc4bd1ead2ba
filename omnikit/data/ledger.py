"""What files and embedded recordings contain: a digest of each, noted with the size and modification time it had.

A digest is trusted while size and time are the noted ones. Otherwise the content is read again, so that data which
was copied or touched is verified once, and data which was replaced is noticed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from omnikit.data.database import open_database
from omnikit.data.shards import in_batches

logger = logging.getLogger(__name__)
LEDGER = "ledger.sqlite"
THREADS = 4  # reading waits on the disk more than on the processor
_TOGETHER = 2048  # contents that are noted in one transaction
_STATS = 64  # of files, in one task of a thread
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS contents"
    " (address BLOB PRIMARY KEY, size INTEGER, time INTEGER, digest BLOB, trusted INTEGER) WITHOUT ROWID"
)

Stamp = tuple[int, int]
"""Size in bytes and modification time in nanoseconds."""


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
        """Size and time of a file, zeros for bytes that never change; None where nothing tells of a change.

        Raises:
            OSError: there is no such file.
            ValueError: its name cannot be that of a file.
        """
        if self.path is None:
            return (0, 0) if self.fixed else None
        found = os.stat(self.path)
        return found.st_size, found.st_mtime_ns

    def unchanged_since(self, seen: Seen) -> bool:
        """Whether the stamp is the one from before the digest was computed."""
        return _stamps([self]) == [seen.stamp]

    def digest(self) -> bytes:
        """Return the BLAKE2b digest [16 bytes] of the content.

        Raises:
            OSError: the file cannot be read.
        """
        if self.path is None:
            return hashlib.blake2b(self.read(), digest_size=16).digest()
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


@dataclass(frozen=True, slots=True)
class Seen:
    """The digest of a content, and its stamp from before it was read."""

    digest: bytes
    stamp: Stamp | None


class Ledger:
    """The digests that were noted in a folder; see `open_ledger`."""

    def __init__(self, connection: sqlite3.Connection):
        self.connection = connection

    def look_up(self, contents: Iterable[Content], title: str, total: int | None = None) -> list[Seen | None]:
        """Return the digest of each content, reading those that are new or have another stamp than the noted one.

        Args:
            title: what the progress bar and the log call them.
            total: how many there are, for the bar.

        Returns:
            In the order of `contents`; None for what cannot be read.
        """
        found: list[Seen | None] = []
        changed: list[str] = []
        bar = tqdm(total=total, desc=f"{title}: checking", leave=False, delay=1.0)
        with ThreadPoolExecutor(THREADS) as pool, bar:
            for some in in_batches(contents, _TOGETHER):
                found += self._look_up(some, pool, changed)
                bar.update(len(some))
        if changed:
            logger.warning("%s: %d have changed since they were read, such as %s", title, len(changed), changed[0])
        return found

    def distrust(self) -> None:
        """Have every content read again when it is next looked up, even if size and time are the noted ones."""
        with self.connection:
            self.connection.execute("UPDATE contents SET trusted = 0")

    def _look_up(self, contents: list[Content], pool: ThreadPoolExecutor, changed: list[str]) -> list[Seen | None]:
        stamps = list(chain.from_iterable(pool.map(_stamps, in_batches(contents, _STATS))))
        noted = [self._noted(content) for content in contents]
        seen: list[Seen | None] = [
            Seen(old[1], stamp) if old is not None and old[0] == stamp else None
            for old, stamp in zip(noted, stamps, strict=True)
        ]
        to_read = [i for i, each in enumerate(seen) if each is None and stamps[i] != _UNREADABLE]
        for i, digest in zip(to_read, pool.map(_digest, [contents[i] for i in to_read]), strict=True):
            if digest is not None:
                seen[i] = Seen(digest, stamps[i])
                changed += [contents[i].address] if noted[i] is not None and noted[i][1] != digest else []
        self._note([(contents[i], seen[i]) for i in to_read if seen[i] is not None and stamps[i] is not None])
        return seen

    def _noted(self, content: Content) -> tuple[Stamp | None, bytes] | None:
        """The noted stamp (None where it is not trusted) and digest."""
        sql = "SELECT size, time, trusted, digest FROM contents WHERE address = ?"
        row = self.connection.execute(sql, (_key(content),)).fetchone()
        return None if row is None else ((row[0], row[1]) if row[2] else None, row[3])

    def _note(self, seen: list[tuple[Content, Seen]]) -> None:
        rows = [(_key(content), *each.stamp, each.digest) for content, each in seen]
        with self.connection:
            self.connection.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?, 1)", rows)


@contextmanager
def open_ledger(folder: str | Path) -> Iterator[Ledger]:
    """Open the ledger of a cache folder for a `with` block; processes may share it.

    Raises:
        ValueError: see `open_database`.
    """
    with open_database(Path(folder) / LEDGER, _SCHEMA) as connection:
        yield Ledger(connection)


_UNREADABLE = (-1, -1)


def _stamps(contents: Sequence[Content]) -> list[Stamp | None]:
    found: list[Stamp | None] = []
    for content in contents:
        try:
            found.append(content.stamp())
        except (OSError, ValueError):  # such a recording is reported when it is loaded
            found.append(_UNREADABLE)
    return found


def _digest(content: Content) -> bytes | None:
    try:
        return content.digest()
    except OSError:
        return None


def _key(content: Content) -> bytes:
    """The address as bytes: names of files need not be text."""
    return content.address.encode("utf-8", "surrogatepass")
