"""Writes manifest entries as CSV, JSON or Parquet; `manifest_reader.py` reads them.

docs/data.md explains the fields. This module does not import torch, so that the preparation of corpora starts quickly.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from omnikit.data.field_values import BETWEEN
from omnikit.data.manifest_columns import AUDIO, CODES_OF, COLUMNS, CSV_ID, WIDTH, features_fit
from omnikit.errors import unwritable
from omnikit.files import whole_file

FIELDS = {name: column.type for name, column in COLUMNS.items()}
"""Mapping from each manifest field to its Parquet type; `a1` and `a2` are paths, or binary if embedded."""
WRITTEN = (".csv", ".json", ".parquet")
"""File name endings of the manifest formats that can be written."""
GROUP_BYTES = 2**26
"""Maximum number of bytes of encoder features in a row group, unless a single entry has more."""
_PAGE_BYTES = 2**30  # above what a row group holds, so that all its features are in one page
_REPEATED = ("speaker", "language", "kind", "codec", "encoder")  # few distinct values: dictionary-encoded in Parquet


def schema(fields: Sequence[str], embedded: Collection[str] = ()) -> pa.Schema:
    """Return the Arrow schema of a Parquet manifest; recordings in `embedded` are stored as bytes of sound files."""
    return pa.schema([(name, pa.binary() if name in embedded else FIELDS[name]) for name in fields])


class ManifestWriter:
    """A context manager that writes manifest entries to a file, which is whole or absent.

    Entries are written to a temporary file that is renamed at the end of the `with` block.

    Args:
        path: path of the manifest; its ending selects the format, see `WRITTEN`.
        fields: names of the fields to write, keys of `FIELDS`; `id` first.
        embedded: which of `a1` and `a2` are stored as bytes (Parquet only); True = both.

    Raises:
        ValueError: another ending, a field that the format cannot hold, or the disk is full; a file that was at `path`
            before remains unchanged.
    """

    def __init__(self, path: str | Path, fields: Sequence[str], embedded: bool | Collection[str] = False):
        self.path, self.kept = Path(path), True
        self.embedded = AUDIO if embedded is True else tuple(embedded or ())
        if self.path.suffix not in _FORMATS:
            raise ValueError(f"manifest {path}: unknown ending {self.path.suffix!r}; choices: {', '.join(WRITTEN)}")
        self._whole = whole_file(self.path)
        aside = self._whole.__enter__()
        with self._refusals():
            self.format = _FORMATS[self.path.suffix](aside, schema(fields, self.embedded))

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write manifest entries, given as dicts of fields; fields that are missing or None stay empty.

        Codes are int16 arrays [K, T].
        """
        with self._refusals():
            self.format.write(rows)

    def discard(self) -> None:
        """Discard the manifest: at the end of the `with` block its temporary file is removed instead of renamed."""
        self.kept = False

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None and self.kept:
            with self._refusals():
                self.format.close()
            self._whole.__exit__(None, None, None)
        else:
            with suppress(OSError):
                self.format.close()
            self._remove()

    def _remove(self) -> None:
        """Exit `whole_file` with an error that is not an `OSError`, so that it only removes the temporary file."""
        self._whole.__exit__(_Discarded, _Discarded(), None)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Convert an `OSError` of writing into an error that names the manifest, and remove the temporary file."""
        try:
            yield
        except OSError as error:
            self._remove()
            raise unwritable(self.path, error) from None


class _Discarded(Exception):
    """Exception that makes `whole_file` discard a manifest; it never reaches the caller."""


class _Csv:
    """A writer of CSV manifests in SpeechBrain's layout: a header and one line per entry."""

    def __init__(self, path: Path, columns: pa.Schema):
        _refuse(path, columns, *CODES_OF.values())
        self.file = path.open("w", newline="", encoding="utf-8")
        self.names = columns.names
        self.writer = csv.writer(self.file, lineterminator="\n")
        self.writer.writerow([CSV_ID if name == "id" else name for name in self.names])

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        self.writer.writerows([_cell(row.get(name)) for name in self.names] for row in rows)

    def close(self) -> None:
        self.file.close()


class _Json:
    """A writer of JSON manifests in SpeechBrain's layout: one object that maps ids to fields."""

    def __init__(self, path: Path, columns: pa.Schema):
        _refuse(path, columns)
        self.file = path.open("w", encoding="utf-8")
        self.names, self.before = columns.names, "{\n"

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            fields = {name: _plain(row[name]) for name in self.names if name != "id" and row.get(name) is not None}
            self.file.write(f"{self.before}{json.dumps(row['id'])}: {json.dumps(fields, ensure_ascii=False)}")
            self.before = ",\n"

    def close(self) -> None:
        if not self.file.closed:
            self.file.write("\n}\n" if self.before.startswith(",") else "{}\n")
        self.file.close()


class _Parquet:
    """A writer of Parquet manifests; each call of `write` makes one row group, or several of up to `GROUP_BYTES`.

    Features are laid out as `parquet_features.py` reads them: uncompressed and in one page of their row group.
    """

    def __init__(self, path: Path, columns: pa.Schema):
        compression = {name: "NONE" if name == "features" else "ZSTD" for name in _leaves(columns)}
        options = {"data_page_size": _PAGE_BYTES} if "features" in columns.names else {}
        repeated = [name for name in _REPEATED if name in columns.names]
        self.writer = pq.ParquetWriter(path, columns, compression=compression, use_dictionary=repeated, **options)
        self.widths: set[int] = set()

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        # Arrow converts lists of vectors, but not matrices
        codes = [{name: list(row[name]) for name in CODES_OF.values() if row.get(name) is not None} for row in rows]
        rows = [{**row, **each} for row, each in zip(rows, codes, strict=True)]
        self.widths.update(_width(row) for row in rows if (row.get("features"), row.get("frames")) != (None, None))
        for group in _groups(rows):
            self.writer.write_table(pa.Table.from_pylist(group, schema=self.writer.schema))

    def close(self) -> None:
        if self.writer.is_open and len(self.widths) == 1 and 0 not in self.widths:
            self.writer.add_key_value_metadata({WIDTH: str(*self.widths)})
        self.writer.close()


def _leaves(columns: pa.Schema) -> list[str]:
    """Return the paths of the columns with which Parquet stores those of a schema; lists have paths of their own."""
    sink = pa.BufferOutputStream()
    pq.write_table(columns.empty_table(), sink)
    stored = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [stored.column(number).path for number in range(len(stored))]


def _width(row: dict[str, Any]) -> int:
    """Return the width of the features of an entry; 0 if they do not fit its `frames`."""
    data, frames = row.get("features") or b"", row.get("frames")
    return len(data) // (2 * frames) if features_fit(len(data), frames) else 0


def _groups(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield rows in lists with up to `GROUP_BYTES` of features."""
    group: list[dict[str, Any]] = []
    held = 0
    for row in rows:
        size = len(row.get("features") or b"")
        if group and held + size > GROUP_BYTES:
            yield group
            group, held = [], 0
        group.append(row)
        held += size
    yield group


_FORMATS = dict(zip(WRITTEN, (_Csv, _Json, _Parquet), strict=True))


def _refuse(path: Path, columns: pa.Schema, *names: str) -> None:
    """Raise `ValueError` if a manifest that is not Parquet has columns of bytes or columns among `names`."""
    unfit = [name for name in columns.names if name in names or columns.field(name).type == pa.binary()]
    if unfit:
        raise ValueError(f"manifest {path.stem}: cannot hold {unfit[0]}; choices: .parquet")


def _cell(value: Any) -> Any:
    """Return the CSV cell for the value of a field; a list of accepted answers is joined with `BETWEEN`."""
    return BETWEEN.join(value) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: codes [K, T] as nested lists, other values unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value
