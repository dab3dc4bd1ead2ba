"""A database of the digests of files and embedded recordings, each with the size and modification time it had.

A stored digest is trusted as long as size and time are unchanged. Otherwise the content is read again: data that was
copied or touched is verified once, and data that was replaced is noticed.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from omnikit.data.content_digest import THREADS, UNREADABLE, Content, Stamp, stamped
from omnikit.data.sqlite import open_database, reading

logger = logging.getLogger(__name__)
LEDGER = "ledger.sqlite"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS contents"
    " (address BLOB PRIMARY KEY, size INTEGER, time INTEGER, digest BLOB, trusted INTEGER) WITHOUT ROWID"
)

@dataclass(frozen=True, slots=True)
class Seen:
    """The digest of a file or an embedded recording, with its size and modification time from before it was read."""

    digest: bytes
    stamp: Stamp | None


class Ledger:
    """An open database of content digests, stored in a cache folder; use `open_ledger` to create one."""

    def __init__(self, connection: sqlite3.Connection):
        self.connection = connection

    def look_up(self, contents: Iterable[Content], title: str, total: int | None = None) -> list[Seen | None]:
        """Return the digests of files or embedded recordings, reading those that are new or have another size or time.

        Args:
            title: name for the progress bar and the log.
            total: number of contents, for the progress bar.

        Returns:
            A digest and stamp for each content, in order; None for a content that cannot be read.
        """
        found: list[Seen | None] = []
        changed: list[str] = []
        bar = tqdm(total=total, desc=f"{title}: checking", leave=False, delay=1.0)
        with ThreadPoolExecutor(THREADS) as pool, bar:
            for some in stamped(contents, pool):
                found += self._look_up(some, pool, changed)
                bar.update(len(some))
        if changed:
            logger.warning("%s: %d have changed since they were read, such as %s", title, len(changed), changed[0])
        return found

    def distrust(self) -> None:
        """Mark all stored digests as untrusted, so that each content is read again when it is next looked up."""
        with self.connection:
            self.connection.execute("UPDATE contents SET trusted = 0")

    def _look_up(
        self, contents: list[tuple[Content, Stamp | None]], pool: ThreadPoolExecutor, changed: list[str]
    ) -> list[Seen | None]:
        with reading(self.connection):
            noted = [self._noted(content) for content, _ in contents]
        seen: list[Seen | None] = [
            Seen(old[1], stamp) if old is not None and old[0] == stamp else None
            for old, (_, stamp) in zip(noted, contents, strict=True)
        ]
        to_read = [i for i, (_, stamp) in enumerate(contents) if seen[i] is None and stamp != UNREADABLE]
        for i, digest in zip(to_read, pool.map(_digest, [contents[i][0] for i in to_read]), strict=True):
            if digest is not None:
                seen[i] = Seen(digest, contents[i][1])
                changed += [contents[i][0].address] if noted[i] is not None and noted[i][1] != digest else []
        self._note([(contents[i][0], seen[i]) for i in to_read if seen[i] is not None and seen[i].stamp is not None])
        return seen

    def _noted(self, content: Content) -> tuple[Stamp | None, bytes] | None:
        """Return the stored size and time (None if untrusted) and digest of a file or recording; None if not stored."""
        sql = "SELECT size, time, trusted, digest FROM contents WHERE address = ?"
        row = self.connection.execute(sql, (_key(content),)).fetchone()
        return None if row is None else ((row[0], row[1]) if row[2] else None, row[3])

    def _note(self, seen: list[tuple[Content, Seen]]) -> None:
        rows = [(_key(content), *each.stamp, each.digest) for content, each in seen]
        with self.connection:
            self.connection.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?, 1)", rows)


@contextmanager
def open_ledger(folder: str | Path) -> Iterator[Ledger]:
    """Open the digest ledger of a cache folder for the duration of a `with` block; several processes may share it.

    Raises:
        ValueError: see `open_database`.
    """
    with open_database(Path(folder) / LEDGER, _SCHEMA) as connection:
        yield Ledger(connection)


def _digest(content: Content) -> bytes | None:
    try:
        return content.digest()
    except OSError:
        return None


def _key(content: Content) -> bytes:
    """Return the database key of a file or embedded recording: its address as bytes, since it may not be UTF-8."""
    return content.address.encode("utf-8", "surrogatepass")
