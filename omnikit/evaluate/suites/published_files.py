"""Reading of the files that suites are published in: lines of JSON and Parquet tables with embedded recordings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omnikit.data.manifest_reader import Recording
from omnikit.errors import one_line
from omnikit.files import read_text


def jsonl_rows(path: Path, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file with one in each line.

    Args:
        path: path of the file.
        fields: fields that each object must have.

    Raises:
        ValueError: there is no such file, a line is no object, or lacks a field.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    for number, line in enumerate(read_text(path, "utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not JSON ({one_line(error, 80)})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} is no object")
        check_fields(f"{path}: line {number}", row, fields)
        yield row


def parquet_rows(path: Path, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file; recordings are `{bytes, path}`, see `recording`.

    Args:
        path: path of the file.
        fields: columns that the table must have.

    Raises:
        ValueError: the file is no Parquet, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            check_fields(str(path), file.schema_arrow.names, fields)
            for batch in file.iter_batches(batch_size=64):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file ({one_line(error, 120)})") from None


def check_fields(where: str, found: Sequence[str] | dict[str, Any], fields: Sequence[str]) -> None:
    """Refuse a row or a table that lacks a field, as a suite of another version does.

    Raises:
        ValueError: the message names the place, the field that is missing and those that are there.
    """
    missing = [name for name in fields if name not in found]
    if missing:
        there = ", ".join(map(str, found)) or "nothing"
        raise ValueError(f"{where}: has no {missing[0]!r}; it has {there}: another version of the suite")


def recording(name: str, stored: Any, folder: Path) -> Recording | None:
    """Return a published recording: a path relative to a folder, or `{bytes, path}` of a table; None for None.

    Args:
        name: id of the question.
        stored: value of the column or field.
        folder: folder that paths are relative to.

    Raises:
        ValueError: the value has another form.
    """
    if stored is None:
        return None
    if isinstance(stored, str):
        return Recording(name, path=str(folder / stored))
    if isinstance(stored, dict) and isinstance(stored.get("bytes"), bytes):
        return Recording(name, table=[stored["bytes"]])
    if isinstance(stored, dict) and isinstance(stored.get("path"), str):
        return Recording(name, path=str(folder / stored["path"]))
    raise ValueError(f"{name}: its recording is neither a path nor embedded bytes: another version of the suite")
