"""Converts Parquet files into one memory-mapped Arrow table with `datasets`.

The table is written to a cache folder and reused as long as the content of the files is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from omnikit.data.content_digest import Content, digest_of
from omnikit.data.digest_ledger import open_ledger
from omnikit.data.parquet_features import TableContent
from omnikit.errors import Unwritable, one_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LaidOut:
    """A memory-mapped `datasets.Dataset`, and the Parquet files that it was built from."""

    data: Any
    version: str
    """Digest of the content of the files, without encoder features."""
    folder: Path
    """Folder in the cache folder for what depends on this content."""


def lay_out(
    files: Sequence[Path], cache_folder: str | Path | None, schema: pa.Schema, *, only: bool = True
) -> LaidOut:
    """Return the rows of Parquet files, in the order of the files, as one memory-mapped table.

    Args:
        cache_folder: folder for the table and the ledger of the files; None = the cache folder of `datasets`.
        schema: the columns to read, with the types to which they are cast.
        only: if true, every file must have these columns, and others are ignored; if false, a file may lack some of
            them but must not have others.

    Raises:
        ValueError: the cache folder's disk is full, or a file is damaged; the message names both.
    """
    from datasets import Dataset, Features, config, disable_progress_bars
    from datasets.exceptions import DatasetGenerationError

    folder = Path(config.HF_DATASETS_CACHE) / "omnikit" if cache_folder is None else Path(cache_folder)
    which = f"{files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''}"
    version = digest_of_files(files, folder, which)
    disable_progress_bars()
    _report_old(folder)
    try:
        data = Dataset.from_parquet(
            [str(file) for file in files],
            features=Features.from_arrow_schema(schema),
            columns=schema.names if only else None,
            cache_dir=str(folder / version),
        )
        return LaidOut(data, version, folder / version)
    except (OSError, DatasetGenerationError) as error:
        cause = error.__cause__ or error
        if not isinstance(cause, OSError):
            raise
        raise Unwritable(folder, f"({which} is laid out there: {one_line(cause)})") from None


def digest_of_files(files: Sequence[Path], folder: Path, which: str) -> str:
    """Return the digest (32 hex digits) of the content of a manifest's files, read only where the ledger lacks it.

    Encoder features in Parquet are not read, see `TableContent`.

    Args:
        folder: folder of the ledger.
        which: name of the files for the progress bar and the log.

    Raises:
        ValueError: a file cannot be read.
    """
    with open_ledger(folder) as ledger:
        seen = ledger.look_up([_content(file) for file in files], which)
    unread = next((file for file, found in zip(files, seen, strict=True) if found is None), None)
    if unread is not None:
        raise ValueError(f"manifest {unread}: cannot be read")
    return digest_of(b"".join(found.digest for found in seen)).hex()


def _content(file: Path) -> Content:
    return (TableContent if file.suffix == ".parquet" else Content).of_file(file)


@cache
def _report_old(folder: Path) -> None:
    """Warn once about cached tables of an earlier version, whose names do not depend on the files' content."""
    if (folder / "parquet").is_dir():
        logger.warning("%s: tables of an earlier version, which are not used any more; delete it", folder / "parquet")
