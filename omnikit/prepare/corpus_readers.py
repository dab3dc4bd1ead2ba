"""Reading what corpora are published as: folders of splits, lines of text, Parquet tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from omnikit.data.find_files import recordings, visible
from omnikit.data.manifest_columns import Malformed, converted
from omnikit.data.parquet_manifest import DAMAGED, values
from omnikit.data.skipped import Item, Remark
from omnikit.prepare.shards import ManifestPart

_READ_ROWS = 256  # of a table at a time


def split_folders(data_folder: Path, inner: Sequence[str], pattern: str) -> dict[str, Path]:
    """The folders that hold a file of `pattern`: in the data folder, else in one of the folders `inner` of it."""
    for root in (data_folder, *(data_folder / name for name in inner)):
        folders = sorted(p for p in visible(root, "*") if p.is_dir())
        found = {p.name: p for p in folders if next(visible(p, pattern), None) is not None}
        if found:
            return found
    return {}


def first_with(data_folder: Path, inner: Sequence[str], name: str) -> Path | None:
    """The data folder, or one of the folders `inner` of it: the first that holds `name`."""
    return next((root for root in (data_folder, *(data_folder / i for i in inner)) if (root / name).exists()), None)


def read_lines(path: Path) -> Iterator[str]:
    """Lines that are not blank, without white space at their ends; bytes that are no UTF-8 become surrogates, which
    `shards` finds.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from (stripped for line in file if (stripped := line.strip()))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def text_of(row: dict[str, Any], column: str) -> str:
    """A text of an upstream row without white space at its ends; "" where it is absent.

    Raises:
        Malformed: it is no text and no whole number.
    """
    value = row.get(column)
    return "" if value is None else converted(column, value, "t1").strip()


def audio_without_text(folder: Path, named: set[str], pattern: str = "*") -> Iterator[Remark]:
    """Yield a remark for each recording in a folder whose name without its ending is not among `named`."""
    found = recordings(folder, pattern)
    return (Remark("audio without text", path.name) for path in found if path.stem not in named)


def parquet_parts(
    path: Path,
    columns: Sequence[str],
    to_item: Callable[[dict[str, Any]], Item | Remark],
    rows_per_part: int | None = None,
) -> list[ManifestPart]:
    """Parts of a Parquet file, each a fixed range of its row groups.

    Args:
        columns: those that are read.
        to_item: from a row, its columns by name, to an item; a `Malformed` that it raises becomes a remark that names
            the row.
        rows_per_part: a part ends with the row group that fills it; None = the whole file is one.

    Raises:
        ValueError: a column is missing.
    """
    try:
        file = pq.ParquetFile(path)
    except DAMAGED:  # the end of the file says what is in it
        return [ManifestPart(path.stem, [path], lambda: [Remark("shard unreadable", path.name)])]
    for column in columns:
        if column not in file.schema_arrow.names:
            raise ValueError(f"{path}: column {column!r} is missing; it has {', '.join(file.schema_arrow.names)}")
    ranges = _ranges([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)], rows_per_part)
    return [
        ManifestPart(
            path.stem if rows_per_part is None else f"{path.stem}-{i:04d}",
            [path],
            lambda groups=groups: _read(path, columns, groups, to_item),
            sum(file.metadata.row_group(group).num_rows for group in groups),
        )
        for i, groups in enumerate(ranges)
    ]


def _ranges(sizes: Sequence[int], rows: int | None) -> list[list[int]]:
    """Indices of row groups, together up to the group that makes `rows` full."""
    ranges: list[list[int]] = []
    held = 0
    for group, size in enumerate(sizes):
        if not ranges or (rows is not None and held >= rows):
            ranges.append([])
            held = 0
        ranges[-1].append(group)
        held += size
    return ranges


def _read(
    path: Path, columns: Sequence[str], groups: list[int], to_item: Callable[[dict[str, Any]], Item | Remark]
) -> Iterator[Item | Remark]:
    try:
        file = pq.ParquetFile(path)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        for group in groups:  # one by one: a batch does not reach from a whole group into a damaged one
            numbers = itertools.count(sum(sizes[:group]) + 1)
            for batch in file.iter_batches(_READ_ROWS, row_groups=[group], columns=list(columns)):
                for row in _rows(batch):
                    yield _item(row, f"{path.name}: entry number {next(numbers)}", to_item)
    except DAMAGED:
        yield Remark("shard unreadable", path.name)


def _item(row: dict[str, Any], where: str, to_item: Callable[[dict[str, Any]], Item | Remark]) -> Item | Remark:
    try:
        return to_item(row)
    except Malformed as bad:
        return Remark(bad.reason, f"{where}: {bad}")


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    columns = [values(column) for column in batch.columns]
    return (dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True))
