"""Small SQLite files that several processes share: how they are opened, and how their errors are reported."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from omnikit.errors import one_line, unwritable

WAIT = 120.0  # seconds until another process that writes is given up on
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PRIMARY = 0xFF  # https://sqlite.org/rescode.html: the low byte of an extended error code


@contextmanager
def open_database(path: Path, schema: str) -> Iterator[sqlite3.Connection]:
    """Open a database, which is created with the statement `schema` if it is missing, for a `with` block.

    SQLite's rollback journal is used and not its write-ahead log, which needs memory that processes on different
    machines cannot share (https://sqlite.org/wal.html).

    Raises:
        ValueError: the file is damaged, the disk is full, or another process holds it; the message names the file.
    """
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=WAIT)) as connection:
            connection.execute(schema)
            yield connection


@contextmanager
def reading(connection: sqlite3.Connection) -> Iterator[None]:
    """Lock the database once for all that is read in a `with` block, where nothing may be written."""
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
