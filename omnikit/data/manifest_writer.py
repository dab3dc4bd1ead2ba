"""The manifest: the fields of a row, and how rows are written as CSV, JSON or Parquet; `manifest_reader.py` reads them.

docs/data.md says what each field means. Neither torch nor a model is needed here, so that preparing starts at once.
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
from omnikit.data.manifest_columns import AUDIO, CODES_OF, COLUMNS, CSV_ID
from omnikit.errors import unwritable
from omnikit.files import whole_file

FIELDS = {name: column.type for name, column in COLUMNS.items()}
"""Field -> its type in Parquet; `a1` and `a2` are paths, or binary where recordings are embedded."""
WRITTEN = (".csv", ".json", ".parquet")
"""Endings of the formats that are written."""
_REPEATED = ("speaker", "language", "kind", "codec", "encoder")  # few values: worth a dictionary in Parquet


def schema(fields: Sequence[str], embedded: Collection[str] = ()) -> pa.Schema:
    """The columns of a Parquet manifest; `embedded` recordings stand in it as encoded sound files."""
    return pa.schema([(name, pa.binary() if name in embedded else FIELDS[name]) for name in fields])


class ManifestWriter:
    """Writes rows aside and renames at the end of its `with` block, so that the file is whole or absent.

    Args:
        path: the ending names the format, see `WRITTEN`.
        fields: names of `FIELDS`; `id` first.
        embedded: which of `a1` and `a2` are bytes (Parquet only); True = both.

    Raises:
        ValueError: another ending, a field that the format cannot hold, or the disk is full; what was at `path` before
            then stays.
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
        """Write entries with any of the fields; what is missing or None stays empty. Codes are int16 [K, T]."""
        with self._refusals():
            self.format.write(rows)

    def discard(self) -> None:
        """Leave no file at the end."""
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
        """End `whole_file` with an error that is none of the disk's, so that it only removes what was written."""
        self._whole.__exit__(_Discarded, _Discarded(), None)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Name the manifest where the disk refuses to write it; errors of those who read entries meanwhile pass."""
        try:
            yield
        except OSError as error:
            self._remove()
            raise unwritable(self.path, error) from None


class _Discarded(Exception):
    """A manifest that is not kept."""


class _Csv:
    """As SpeechBrain reads it: a header, and one line a row."""

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
    """As SpeechBrain reads it: one object, id -> fields."""

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
    """One row group for each call of `write`."""

    def __init__(self, path: Path, columns: pa.Schema):
        repeated = [name for name in _REPEATED if name in columns.names]
        self.writer = pq.ParquetWriter(path, columns, compression="zstd", use_dictionary=repeated)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        # arrow takes a list of vectors, not a matrix
        codes = [{name: list(row[name]) for name in CODES_OF.values() if row.get(name) is not None} for row in rows]
        rows = [{**row, **each} for row, each in zip(rows, codes, strict=True)]
        self.writer.write_table(pa.Table.from_pylist(rows, schema=self.writer.schema))

    def close(self) -> None:
        self.writer.close()


_FORMATS = dict(zip(WRITTEN, (_Csv, _Json, _Parquet), strict=True))


def _refuse(path: Path, columns: pa.Schema, *names: str) -> None:
    """Bytes, and columns `names`."""
    unfit = [name for name in columns.names if name in names or columns.field(name).type == pa.binary()]
    if unfit:
        raise ValueError(f"manifest {path.stem}: cannot hold {unfit[0]}; choices: .parquet")


def _cell(value: Any) -> Any:
    """Accepted answers as one text."""
    return BETWEEN.join(value) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    """Codes [K, T] as lists."""
    return value.tolist() if hasattr(value, "tolist") else value
