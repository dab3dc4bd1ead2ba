"""Readers of the forms in which corpora are published: folders of splits, text files, Parquet tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from omnikit.data.find_files import recordings, visible
from omnikit.data.manifest_columns import Malformed, converted
from omnikit.data.parquet_manifest import DAMAGED, values
from omnikit.data.skipped import Item, Remark
from omnikit.prepare.shards import ManifestPart

_READ_ROWS = 256  # rows of a table that are read at a time


def split_folders(data_folder: Path, inner: Sequence[str], pattern: str) -> dict[str, Path]:
    """Return the name and path of each folder with a file that matches `pattern`.

    Folders are looked for in the data folder, or else in the first of its subfolders `inner` that has any.
    """
    for root in (data_folder, *(data_folder / name for name in inner)):
        folders = sorted(p for p in visible(root, "*") if p.is_dir())
        found = {p.name: p for p in folders if next(visible(p, pattern), None) is not None}
        if found:
            return found
    return {}


def first_with(data_folder: Path, inner: Sequence[str], name: str) -> Path | None:
    """Return the data folder or the first of its subfolders `inner` that contains a file `name`; None if none does."""
    return next((root for root in (data_folder, *(data_folder / i for i in inner)) if (root / name).exists()), None)


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file that are not blank, stripped of white space.

    Bytes that are not UTF-8 become surrogates, which `shards.problem_of_texts` detects.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from (stripped for line in file if (stripped := line.strip()))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def text_of(row: dict[str, Any], column: str) -> str:
    """Return a text column of a row of a published table, stripped of white space; "" if it is absent.

    Raises:
        Malformed: the value is neither a string nor an integer.
    """
    value = row.get(column)
    return "" if value is None else converted(column, value, "t1").strip()


def audio_without_text(folder: Path, named: set[str], pattern: str = "*") -> Iterator[Remark]:
    """Yield a remark for each recording in a folder for which there is no text.

    Args:
        named: file names without ending of the recordings that have a text.
        pattern: glob pattern of the recordings.
    """
    found = recordings(folder, pattern)
    return (Remark("audio without text", path.name) for path in found if path.stem not in named)


def parquet_parts(
    path: Path,
    columns: Sequence[str],
    to_item: Callable[[dict[str, Any]], Item | Remark],
    rows_per_part: int | None = None,
) -> list[ManifestPart]:
    """Return the parts of a Parquet file, each a fixed range of its row groups.

    Args:
        columns: names of the columns to read.
        to_item: function from a row, as a dict of these columns, to an item; a `Malformed` that it raises becomes a
            remark that names the row.
        rows_per_part: minimum number of rows in a part, which ends with the row group that reaches it; None = the whole
            file is one part.

    Raises:
        ValueError: a column is missing.
    """
    try:
        file = pq.ParquetFile(path)
    except DAMAGED:  # without the metadata at its end nothing of the file can be read
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
            stored=lambda names, groups=groups: _stored(path, names, groups),
        )
        for i, groups in enumerate(ranges)
    ]


def _ranges(sizes: Sequence[int], rows: int | None) -> list[list[int]]:
    """Return the indices of row groups as consecutive ranges that hold at least `rows` rows each, but for the last."""
    ranges: list[list[int]] = []
    held = 0
    for group, size in enumerate(sizes):
        if not ranges or (rows is not None and held >= rows):
            ranges.append([])
            held = 0
        ranges[-1].append(group)
        held += size
    return ranges


def _stored(path: Path, names: Collection[str], groups: Sequence[int]) -> int:
    """Return the number of bytes that columns take in some row groups of a Parquet file."""
    with pq.ParquetFile(path) as file:
        found = [file.metadata.row_group(group) for group in groups]
        chunks = [group.column(number) for group in found for number in range(group.num_columns)]
        return sum(each.total_compressed_size for each in chunks if each.path_in_schema.partition(".")[0] in names)


def _read(
    path: Path, columns: Sequence[str], groups: list[int], to_item: Callable[[dict[str, Any]], Item | Remark]
) -> Iterator[Item | Remark]:
    try:
        file = pq.ParquetFile(path)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        for group in groups:  # one at a time, so that no batch extends from an intact group into a damaged one
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
