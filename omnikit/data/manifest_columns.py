"""The table of manifest columns: the names, Parquet types and values that each accepts, and their conversion.

Manifests of all formats (CSV, JSON, JSONL, Parquet) and the published corpora are read through this table;
docs/data_rules.md lists it.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from omnikit.data import field_values
from omnikit.errors import one_line

CSV_ID = "ID"
"""SpeechBrain's name of the column `id`, which is also written to CSV files."""
AUDIO = ("a1", "a2")
"""Fields that hold recordings: of the question and of the answer."""
CODES_OF = {"a1": "codes1", "a2": "codes"}
"""Mapping from the field of a recording to the field of its codes."""
NEEDED = ("id", "t1")
"""Fields that every manifest must have a column for."""
WIDTH = "features_width"
"""Key of the metadata of a Parquet file that notes the width of its features, if all have it and fit `frames`."""
_SHOWN = 30  # maximum number of columns that an error lists
_DATA_ROOT = re.compile(r"^(\$data_root|\{data_root\})(/+|$)")


class Malformed(ValueError):
    """Error raised for an invalid manifest entry, which is then skipped and counted under its `reason`."""

    def __init__(self, message: str, reason: str = field_values.MALFORMED):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Column:
    """The description of one manifest column: its types, its accepted values and its names.

    Args:
        type: Parquet type with which the column is written.
        value: function that converts an accepted value and raises `field_values.Unfit` for any other.
        accepts: description of the accepted values for error messages.
        stored: predicate that says whether a Parquet type is accepted when reading.
        also: names of the column in manifests of other toolkits.
    """

    type: pa.DataType
    value: Callable[[Any], Any]
    accepts: str
    stored: Callable[[pa.DataType], bool]
    also: tuple[str, ...] = ()


def located(path: str, folder: Path) -> str:
    """Return the absolute path of a recording whose manifest is in `folder`.

    Relative paths are relative to that folder, and so is a path that begins with SpeechBrain's placeholder `$data_root`
    or `{data_root}`.
    """
    return str((folder / _DATA_ROOT.sub("", path, count=1)).absolute())


def fields_named(found: Sequence[str], needed: Iterable[str] = NEEDED) -> dict[str, str]:
    """Return a mapping from the known columns of a manifest to the fields that they hold.

    Args:
        found: names of all columns.
        needed: fields that must be among them.

    Raises:
        ValueError: two columns hold the same field.
        Malformed: a needed column is missing.
    """
    fields: dict[str, str] = {}
    for name in found:
        field = _FIELD_OF.get(name)
        if field in fields.values():
            other = next(known for known, taken in fields.items() if taken == field)
            both = f"{shortened(other)} and {shortened(name)} both hold {field}"
            raise ValueError(f"column {f'{name!r} is given twice' if name == other else both}; keep one of them")
        if field is not None:
            fields[name] = field
    for field in needed:
        if field not in fields.values():
            also = f" (other names: {', '.join(COLUMNS[field].also)})" if COLUMNS[field].also else ""
            shown = _printable(", ".join(map(str, found[:_SHOWN])) + (" .." if len(found) > _SHOWN else ""))
            raise Malformed(f"column {field!r} is missing; it has {shown or 'none'}{also}")
    return fields


def typed(entry: Mapping[str, Any], fields: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Return the values of a manifest entry by field, converted to the fields' types; absent values are omitted.

    Args:
        entry: values by the manifest's own column names.
        fields: mapping from column names to fields, see `fields_named`.
        folder: folder of the manifest, to which relative paths refer.

    Raises:
        Malformed: a value is not accepted; the message names column, value and what is accepted.
    """
    found: dict[str, Any] = {}
    for name, field in fields.items():
        value = entry.get(name)
        if value is not None or field == "id":
            value = converted(name, value, field)
            if value is not None:
                found[field] = located(value, folder) if field in AUDIO and isinstance(value, str) else value
    return found


def converted(name: str, value: Any, field: str) -> Any:
    """Return one value of the column `name`, converted to the type of `field`.

    Raises:
        Malformed: the value is not accepted; the message names column, value and what is accepted.
    """
    try:
        return COLUMNS[field].value(value)
    except field_values.Unfit as unfit:
        words = "no text in UTF-8" if unfit.reason == field_values.NOT_UTF8 else f"no {COLUMNS[field].accepts}"
        raise Malformed(f"{name} {shortened(value)} is {words}", unfit.reason) from None


def entry_called(entry: Mapping[str, Any], fields: Mapping[str, str]) -> str:
    """Return the prefix `entry '<id>': ` of error messages about a manifest entry; "" if it has no usable id."""
    name = next((name for name, field in fields.items() if field == "id"), None)
    value = None if name is None else entry.get(name)
    return f"entry {shortened(value)}: " if isinstance(value, (str, int)) and str(value).strip() else ""


def checked(found: dict[str, Any]) -> dict[str, Any]:
    """Return the typed fields of a manifest entry unchanged, after checking that features and `frames` match.

    Raises:
        Malformed: the features are not `frames` vectors of float16.
    """
    if "features" in found and not features_fit(len(found["features"]), found.get("frames")):
        size = len(found["features"])
        raise Malformed(f"frames {found.get('frames')} is no number of float16 vectors in {size} bytes of features")
    return found


def features_fit(size: int, frames: int | None) -> bool:
    """Return whether features of `size` bytes can hold `frames` float16 vectors of equal width."""
    return frames is not None and frames > 0 and size > 0 and size % (2 * frames) == 0


_NAME = (field_values.text, "text or whole number", field_values.is_name)
_SOUND = (field_values.recording, "path, bytes of a sound file, or {bytes, path}", field_values.is_sound)
_ANSWERS = (
    field_values.accepted_answers,
    f"list of texts, or one with {field_values.BETWEEN} between them",
    field_values.is_answers,
)
_CODES = (
    field_values.codes,
    f"lists of the same number of codes, each in 0 .. {field_values.LARGEST_CODE}",
    field_values.is_codes,
)
_CODES_TYPE = pa.list_(pa.list_(pa.int16()))
COLUMNS = {
    # also: SpeechBrain's CSV files (ID, wav, wrd, spk_id), WeNet's (key, wav, txt) and SLAM-LLM's (key, source, target)
    "id": Column(
        pa.string(), field_values.name, "text (not blank) or whole number", field_values.is_name, (CSV_ID, "key")
    ),
    "duration": Column(pa.float64(), field_values.seconds, "number (of seconds, 0 or more)", field_values.is_number),
    "speaker": Column(pa.string(), *_NAME, ("spk_id",)),
    "language": Column(pa.string(), *_NAME),
    "kind": Column(pa.string(), *_NAME),
    "dialog": Column(pa.string(), *_NAME),
    "turn": Column(pa.int32(), field_values.turn, "whole number, 0 or more", pa.types.is_integer),
    "t1": Column(pa.string(), *_NAME, ("wrd", "txt", "target")),
    "t2": Column(pa.string(), *_NAME),
    "accepted": Column(pa.list_(pa.string()), *_ANSWERS),
    "a1": Column(pa.string(), *_SOUND, ("wav", "source")),
    "a2": Column(pa.string(), *_SOUND),
    "codes1": Column(_CODES_TYPE, *_CODES),
    "codes": Column(_CODES_TYPE, *_CODES),
    "codec": Column(pa.string(), *_NAME),
    "features": Column(pa.binary(), field_values.data, "bytes (of Parquet only)", field_values.is_bytes),
    "frames": Column(pa.int32(), field_values.count, "whole number above 0", pa.types.is_integer),
    "encoder": Column(pa.string(), *_NAME),
}
"""Mapping from each field to the description of its column, in the order in which manifests are written."""
_FIELD_OF = {name: field for field, column in COLUMNS.items() for name in (field, *column.also)}


class _Short(reprlib.Repr):
    """A `reprlib.Repr` that abbreviates values for error messages without formatting all of a long value."""

    def __init__(self):
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 60

    def repr_bytes(self, value: bytes, level: int) -> str:
        return f"({len(value)} bytes)"


_short = _Short()


def shortened(value: Any) -> str:
    """Return the abbreviated representation of a value in one printable line of at most 200 characters."""
    return _printable(_short.repr(value))


def _printable(words: str) -> str:
    return one_line(words.encode("utf-8", "backslashreplace").decode(), 200)
