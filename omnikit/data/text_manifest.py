"""Reads the entries of CSV, JSON and JSONL manifests as typed fields, or as the reason why an entry is skipped."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omnikit.data.find_files import MANIFESTS
from omnikit.data.manifest_columns import COLUMNS, Malformed, checked, entry_called, fields_named, shortened, typed
from omnikit.data.skipped import Item, Remark
from omnikit.errors import Unwritable, one_line

DELIMITERS = ",;\t"
"""Delimiters that are recognised between the cells of a CSV file; spreadsheets write all three."""
_ID = ("id", *COLUMNS["id"].also)
_Found = tuple[str, dict[str, Any] | Malformed]
"""A manifest entry as read: its position in the file, for messages, and its values by the file's column names."""


def read_fields(path: Path) -> Iterator[Item | Remark]:
    """Yield the typed fields of each entry of a `.csv`, `.json` or `.jsonl` manifest, or a remark if it is skipped.

    The names of the fields are those of `manifest_columns.COLUMNS`. Paths of recordings are made absolute, relative to
    the manifest's folder.

    Raises:
        ValueError: no such file, it is not of the format that its ending says, a column is missing or given twice, two
            entries have the same id, or no entry is usable.
    """
    if not path.is_file():
        raise ValueError(f"manifest: no such file: {path}")
    if path.suffix not in _READERS:
        choices = f"{', '.join(MANIFESTS)}, or a folder of .parquet files"
        raise ValueError(f"manifest {path}: unknown ending {path.suffix!r}; choices: {choices}")
    typing, ids, first = _Typing(path), set(), None
    with about(path):
        for place, entry in _READERS[path.suffix](path):
            found = typing(place, entry)
            if isinstance(found, Remark):
                first = first or found
            elif found["id"] in ids:
                raise ValueError(f"two entries have the id {shortened(found['id'])}")
            else:
                ids.add(found["id"])
            yield found
        if first is not None and not ids:
            raise ValueError(f"{first.example.removeprefix(typing.name)}; no entry is usable")


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Prefix each `ValueError` raised in a `with` block with the path of the manifest."""
    try:
        yield
    except UnicodeDecodeError as error:
        kind = path.suffix[1:].upper()
        raise ValueError(f"manifest {path}: not a {kind} file in UTF-8 ({one_line(error)})") from None
    except Unwritable:  # concerns a cache, not the manifest
        raise
    except ValueError as error:
        raise ValueError(f"manifest {path}: {error}") from None


class _Typing:
    """Converts the entries of one manifest to typed fields; it matches the columns of each set of names once."""

    def __init__(self, path: Path):
        self.folder, self.name = path.parent, f"{path.name}: "
        self.fields: dict[tuple[str, ...], dict[str, str]] = {}

    def __call__(self, place: str, entry: dict[str, Any] | Malformed) -> Item | Remark:
        fields: dict[str, str] = {}
        try:
            if isinstance(entry, Malformed):
                raise entry
            fields = self.fields.get(tuple(entry)) or self.fields.setdefault(tuple(entry), fields_named(tuple(entry)))
            given = {name: each for name, each in entry.items() if each not in (None, "") or fields.get(name) == "id"}
            return checked(typed(given, fields, self.folder))
        except Malformed as bad:
            if not isinstance(entry, Malformed):
                place = f"{place}:" if place else place
                place = f"{place} {entry_called(entry, fields or fields_named(tuple(entry), ()))}".strip()
            return Remark(bad.reason, f"{self.name}{f'{place} {bad}'.strip()}")


def _read_csv(path: Path) -> Iterator[_Found]:
    csv.field_size_limit(2**31 - 1)  # answers can be longer than the module's 128 KiB
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_delimiter(file.readline()), skipinitialspace=True, strict=True)
            file.seek(0)
            header = [name.strip() for name in next(reader, [])]
            fields = fields_named([name for name in header if name])
            for cells in _lines(reader):
                if isinstance(cells, Malformed):
                    yield f"line {reader.line_num}", cells
                elif any(cell.strip() for cell in cells):
                    yield f"line {reader.line_num}", _by_name(header, fields, cells)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: not CSV ({one_line(error)})") from None


def _lines(reader: Any) -> Iterator[list[str] | Malformed]:
    """Yield the cells of each line of a strict `csv.reader`, or an error for a malformed line.

    A line is malformed if text follows a closing quotation mark, as in `"Yes" he said`.

    Raises:
        csv.Error: the closing quotation mark is missing or in a later line than the opening one, so that the end of the
            cell cannot be determined.
    """
    while True:
        begin = reader.line_num
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > begin + 1 or "end of data" in str(error):
                raise
            yield Malformed(f"cannot be read ({one_line(error)})")


def _delimiter(header: str) -> str:
    """Return the delimiter that splits the header of a CSV file into the needed columns; a comma where none does."""
    for delimiter in DELIMITERS:
        try:
            fields_named([name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])])
        except (ValueError, csv.Error):
            continue
        return delimiter
    return DELIMITERS[0]


def _by_name(header: list[str], fields: dict[str, str], cells: list[str]) -> dict[str, Any] | Malformed:
    if len(cells) != len(header):
        return Malformed(f"has not the header's number of columns ({len(cells)} of {len(header)})")
    return {name: cell.strip() for name, cell in zip(header, cells, strict=True) if name in fields}


def _read_json(path: Path) -> Iterator[_Found]:
    text = path.read_bytes().decode("utf-8-sig")
    try:
        stored = _loads(text)
    except json.JSONDecodeError as error:
        hint = "; a file with an object in each line is called .jsonl" if "Extra data" in str(error) else ""
        raise ValueError(f"not a JSON file in UTF-8 ({one_line(error)}){hint}") from None
    if not isinstance(stored, dict):
        raise ValueError("must be one object, id -> fields; a file with an object in each line is called .jsonl")
    for name, values in stored.items():
        if not isinstance(values, dict):
            yield "", Malformed(f"entry {shortened(name)}: {shortened(values)} is no object of fields")
            continue
        fields = {each: value for each, value in values.items() if each not in _ID or str(value) != name}
        if "id" in fields:
            raise ValueError(
                f"entry {shortened(name)}: its field 'id' is {shortened(fields['id'])}; keep one of the two"
            )
        yield "", {"id": name, **fields}


def _read_jsonl(path: Path) -> Iterator[_Found]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                values = _loads(text) if text else None
            except UnicodeDecodeError:
                raise ValueError(f"line {number}: not UTF-8") from None
            except ValueError as error:
                values = Malformed(f"cannot be read ({one_line(error)})")
            if text:
                fits = isinstance(values, (dict, Malformed))
                yield f"line {number}", values if fits else Malformed("is no object of fields")


def _loads(text: str) -> Any:
    """Return the value of a JSON text, and refuse objects with duplicate keys.

    Raises:
        ValueError: the text is not JSON, has a duplicate key, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shortened(twice)} is given twice")
    return found


_READERS: dict[str, Callable[[Path], Iterator[_Found]]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
}
