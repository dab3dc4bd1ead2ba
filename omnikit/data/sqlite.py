"""Opens small SQLite databases that several processes share, and reports their errors in one line."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from omnikit.errors import one_line, unwritable

WAIT = 120.0  # seconds to wait for a lock that another process holds
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PRIMARY = 0xFF  # https://sqlite.org/rescode.html: the low byte of an extended error code


@contextmanager
def open_database(path: Path, schema: str) -> Iterator[sqlite3.Connection]:
    """Open an SQLite database for the duration of a `with` block; a missing one is created with the statement `schema`.

    SQLite's rollback journal is used rather than its write-ahead log, which needs shared memory and therefore does not
    work across machines (https://sqlite.org/wal.html).

    Raises:
        ValueError: the file is damaged, the disk is full, or another process holds a lock; the message names the file.
    """
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=WAIT)) as connection:
            connection.execute(schema)
            yield connection


@contextmanager
def reading(connection: sqlite3.Connection) -> Iterator[None]:
    """Hold one read transaction for all queries of a `with` block, which must not write to the database."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.rollback()


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise unwritable(path, error) from None
    except sqlite3.DatabaseError as error:
        if (error.sqlite_errorcode or 0) & _PRIMARY not in _DAMAGED:
            raise
        raise ValueError(f"{path}: is damaged ({one_line(error)}); delete the folder {path.parent}") from None
