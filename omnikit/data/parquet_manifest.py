"""Validates Parquet manifests before their entries are read: files, columns and types, and malformed rows.

The rules are those of `manifest_columns.py`. They are first applied to whole Arrow arrays; only rows that may violate
them are converted one by one, so that manifests of millions of rows are validated in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omnikit.data.field_values import common_type, is_text
from omnikit.data.find_files import visible
from omnikit.data.manifest_columns import (
    AUDIO,
    CODES_OF,
    COLUMNS,
    NEEDED,
    WIDTH,
    Malformed,
    converted,
    entry_called,
    features_fit,
    fields_named,
    shortened,
)
from omnikit.data.text_manifest import about
from omnikit.errors import one_line

DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)
"""Exceptions that pyarrow raises for a truncated or damaged Parquet file."""
_VISIBLE = r"[^\s\pZ\pC]"  # any character but white space, control and unassigned ones
_UNUSUAL_PATH = 200  # bytes; only a longer path may have a component that is too long for a file system


class Damaged(ValueError):
    """Error raised for a Parquet file whose columns cannot be read."""


@dataclass(frozen=True)
class Shard:
    """The schema of one Parquet file of a manifest, its number of rows, and the fields that its columns hold."""

    file: Path
    schema: pa.Schema
    rows: int
    fields: dict[str, str]  # column name -> field
    width: int | None = None
    """Width D of all features of the file, if it notes one: then exactly the rows with `frames` have features."""


def shard_files(manifest: Path) -> list[Path]:
    """Return the Parquet files of a manifest, which is one file or a folder, in the order of their names.

    Raises:
        ValueError: no such file, or a folder without Parquet files.
    """
    files = sorted(visible(manifest, "*.parquet")) if manifest.is_dir() else [manifest]
    if not files or not files[0].is_file():
        raise ValueError(f"manifest: no such file: {manifest / '*.parquet' if manifest.is_dir() else manifest}")
    return files


def read_shard(file: Path, needed: Iterable[str] = NEEDED) -> Shard:
    """Read the schema of a Parquet file and match its columns to manifest fields, without reading rows.

    Args:
        needed: fields that the file must have.

    Raises:
        Damaged: the file cannot be read.
        ValueError: a column is missing or given twice, or its type is not accepted.
    """
    try:
        with pq.ParquetFile(file) as opened:
            schema, rows = opened.schema_arrow, opened.metadata.num_rows
            names, width = schema.names, (opened.metadata.metadata or {}).get(WIDTH.encode())
    except DAMAGED as error:
        raise Damaged(f"manifest {file}: not a Parquet file that can be read ({one_line(error)})") from None
    with about(file):
        fields = fields_named(names, needed)
        for name, field in fields.items():
            kind = schema.field(name).type
            if not pa.types.is_null(kind) and not COLUMNS[field].stored(kind):
                raise ValueError(f"column {name!r} holds {one_line(kind)}, which is no {COLUMNS[field].accepts}")
    return Shard(file, schema, rows, fields, int(width) if width is not None and width.isdigit() else None)


def check_alike(shards: Sequence[Shard]) -> pa.Schema:
    """Return the common schema of shards that are read as one table: their known columns with common types.

    Raises:
        ValueError: a shard has a known column that the first one lacks, or types have no common type; the message names
            shard and column.
    """
    first = shards[0]
    kinds: dict[str, pa.DataType] = {name: pa.null() for name in first.fields}
    typing: dict[str, Shard] = {}  # column -> the first shard in which it is not null throughout
    for shard in shards:
        with about(shard.file):
            for name, field in shard.fields.items():
                if name not in kinds:
                    where = f"{first.file.name}; shards need the same columns"
                    raise ValueError(f"column {shortened(name)} is not in {where}")
                kind = shard.schema.field(name).type
                common = common_type(kinds[name], kind)
                if common is None and field in AUDIO:
                    raise ValueError("its recordings are bytes where others are paths, or the other way round")
                if common is None:
                    other = typing[name]
                    held = one_line(other.schema.field(name).type)
                    raise ValueError(f"column {name!r} holds {one_line(kind)}, but {held} in {other.file.name}")
                kinds[name] = common
                if not pa.types.is_null(kind):
                    typing.setdefault(name, shard)
    return pa.schema(list(kinds.items()), first.schema.metadata)


def check_ids(ids: Iterable[pa.ChunkedArray]) -> None:
    """Raise an error if two rows of a manifest have the same id; rows without an id are ignored.

    Raises:
        ValueError: two rows have the same id, which the message names.
    """
    chunks = [chunk for each in ids for chunk in each.chunks if not pa.types.is_null(chunk.type)]
    if not chunks:
        return
    texts = [chunk if is_text(chunk.type) else chunk.cast(pa.string()) for chunk in chunks]
    found = pa.chunked_array([chunk.cast(pa.large_binary()) for chunk in texts])
    if pc.count_distinct(found).as_py() == len(found) - found.null_count:
        return
    counts = pc.value_counts(found.drop_null())
    for each in counts.filter(pc.greater(counts.field("counts"), 1)):
        name = each["values"].as_py().decode("utf-8", "surrogateescape")
        if name.strip():
            raise ValueError(f"two entries have the id {shortened(name)}")


def malformed_rows(table: pa.Table, fields: dict[str, str], sizes: np.ndarray | None = None) -> dict[int, Malformed]:
    """Return a mapping from the index of each row with a value that its column does not accept to the error.

    Args:
        sizes: number of bytes of the encoder features in each row, which are not in the table; -1 where there are none.
    """
    found: dict[int, Malformed] = {}
    for name, field in fields.items():
        start = 0
        for chunk in table.column(name).chunks:
            for place in _suspects(field, chunk):
                try:
                    converted(name, value_of(chunk[int(place)]), field)
                except Malformed as bad:
                    found.setdefault(start + int(place), bad)
            start += len(chunk)
    if sizes is not None:
        for place in _unfit_features(table, sizes):
            found.setdefault(place, Malformed("frames is no number of float16 vectors in features"))
    return {place: _about_row(bad, table, fields, place) for place, bad in sorted(found.items())}


def values(array: pa.Array) -> list[Any]:
    """Return the values of an Arrow array as Python objects; bytes that are not UTF-8 become surrogates in strings."""
    return array.to_pylist() if _is_utf8(array) else [value_of(scalar) for scalar in array]


def value_of(scalar: pa.Scalar) -> Any:
    """Return an Arrow scalar as a Python object; bytes of a string that are not UTF-8 become surrogates."""
    if is_text(scalar.type):
        data = scalar.cast(pa.string()).cast(pa.binary()).as_py()
        return None if data is None else data.decode("utf-8", "surrogateescape")
    if pa.types.is_struct(scalar.type):
        return {name: value_of(scalar[name]) for name in scalar.keys()} if scalar.is_valid else None  # noqa: SIM118
    if pa.types.is_list(scalar.type) or pa.types.is_large_list(scalar.type):
        return [value_of(each) for each in scalar.values] if scalar.is_valid else None
    return scalar.as_py()


def code_frames(chunk: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the minimum and the maximum number of codes per codebook in each row of a column of codes.

    Returns:
        Two int64 arrays [rows], which differ where lists are of unequal lengths; -1 where a row has no codes.
    """
    rows = len(chunk)
    books = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    lengths = pc.fill_null(pc.list_value_length(pc.list_flatten(chunk)), 0).to_numpy(zero_copy_only=False)
    least, most = np.full(rows, -1, np.int64), np.full(rows, -1, np.int64)
    held = np.flatnonzero(books)
    if len(held):
        begins = np.concatenate([[0], np.cumsum(books[held])[:-1]])
        least[held], most[held] = np.minimum.reduceat(lengths, begins), np.maximum.reduceat(lengths, begins)
    return least, most


def _suspects(field: str, chunk: pa.Array) -> Iterator[int] | np.ndarray | range:
    """Return the indices of the values of an array that may be invalid for a field and must be checked one by one."""
    if field == "id":
        return _unusual_ids(chunk)
    if pa.types.is_null(chunk.type):
        return range(0)
    if field in AUDIO:
        return _unusual_paths(chunk)
    if field in CODES_OF.values():
        return _unusual_codes(chunk)
    if field in ("duration", "frames") and not is_text(chunk.type):
        usual = pc.and_(pc.greater_equal(chunk, 0 if field == "duration" else 1), pc.is_finite(chunk))
        return np.flatnonzero(~_true(pc.or_(usual, pc.is_nan(chunk))) & _valid(chunk))
    if field == "duration":
        return np.flatnonzero(_valid(chunk))
    return range(0) if _is_utf8(chunk) else np.flatnonzero(_valid(chunk))


def _unusual_ids(chunk: pa.Array) -> np.ndarray:
    if not is_text(chunk.type):
        return np.flatnonzero(~_valid(chunk))
    if not _is_utf8(chunk):
        return np.arange(len(chunk))
    return np.flatnonzero(~_true(pc.match_substring_regex(_plain(chunk), _VISIBLE)))


def _unusual_paths(chunk: pa.Array) -> np.ndarray:
    if pa.types.is_struct(chunk.type):
        names = [chunk.type.field(i).name for i in range(chunk.type.num_fields)]
        paths = chunk.field("path") if "path" in names else pa.nulls(len(chunk))
    else:
        paths = chunk
    if not is_text(paths.type):
        return np.zeros(0, int)
    if not _is_utf8(paths):
        return np.flatnonzero(_valid(chunk))
    paths = _plain(paths)
    odd = pc.or_(pc.greater(pc.binary_length(paths), _UNUSUAL_PATH), pc.match_substring(paths, "\0"))
    return np.flatnonzero(_true(odd) & _valid(chunk))


def _unusual_codes(chunk: pa.Array) -> np.ndarray:
    values = pc.list_flatten(pc.list_flatten(chunk))
    span = pc.min_max(values)
    within = span["min"].as_py() is None or (span["min"].as_py() >= 0 and span["max"].as_py() < 2**15)
    least, most = code_frames(chunk)
    usual = (least == most) & (least > 0) & (within and not values.null_count)
    return np.flatnonzero(~usual & _valid(chunk))


def _unfit_features(table: pa.Table, sizes: np.ndarray) -> list[int]:
    held, frames = np.flatnonzero(sizes >= 0), np.zeros(len(sizes), np.int64)
    if "frames" in table.column_names and not pa.types.is_null(table.column("frames").type):
        frames = pc.fill_null(table.column("frames").cast(pa.int64()), 0).to_numpy()
    pairs = zip(held.tolist(), sizes[held].tolist(), frames[held].tolist(), strict=True)
    return [place for place, size, count in pairs if not features_fit(size, count)]


def _about_row(bad: Malformed, table: pa.Table, fields: dict[str, str], place: int) -> Malformed:
    entry = {name: value_of(table.column(name)[place]) for name, field in fields.items() if field == "id"}
    return Malformed(f"entry number {place + 1}: {entry_called(entry, fields)}{bad}", bad.reason)


def _plain(chunk: pa.Array) -> pa.Array:
    """Return an array of strings without dictionary and view types, which few functions of Arrow accept."""
    return chunk if pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type) else chunk.cast(pa.string())


def _is_utf8(chunk: pa.Array) -> bool:
    try:
        chunk.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _valid(chunk: pa.Array) -> np.ndarray:
    return chunk.is_valid().to_numpy(zero_copy_only=False)


def _true(condition: pa.Array) -> np.ndarray:
    """Return a mask [rows] of the rows where a condition is true; null counts as false."""
    return pc.fill_null(condition, False).to_numpy(zero_copy_only=False)
