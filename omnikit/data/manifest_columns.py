"""The columns of a manifest: which names, Parquet types and values each accepts, and the typed value that they become.

CSV, JSON, JSONL and Parquet manifests and the published corpora are read through this one table;
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
"""SpeechBrain's name of the column `id`."""
AUDIO = ("a1", "a2")
CODES_OF = {"a1": "codes1", "a2": "codes"}
"""Recording -> its codes."""
NEEDED = ("id", "t1")
"""Columns that every manifest has."""
_SHOWN = 30  # columns that an error lists
_DATA_ROOT = re.compile(r"^(\$data_root|\{data_root\})(/+|$)")


class Malformed(ValueError):
    """An entry that makes no row; `reason` is the one under which it is counted."""

    def __init__(self, message: str, reason: str = field_values.MALFORMED):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Column:
    """The description of one column.

    Args:
        type: the Parquet type that is written.
        value: converts an accepted value; raises `field_values.Unfit` for any other.
        accepts: the accepted values in words, for errors.
        stored: whether a Parquet type is accepted when read.
        also: names of the column in other toolkits' manifests.
    """

    type: pa.DataType
    value: Callable[[Any], Any]
    accepts: str
    stored: Callable[[pa.DataType], bool]
    also: tuple[str, ...] = ()


def located(path: str, folder: Path) -> str:
    """The absolute path of a recording: a relative one begins at the manifest's `folder`, and SpeechBrain's placeholder
    `$data_root` or `{data_root}` stands for that folder."""
    return str((folder / _DATA_ROOT.sub("", path, count=1)).absolute())


def fields_named(found: Sequence[str], needed: Iterable[str] = NEEDED) -> dict[str, str]:
    """Map the columns of a manifest that are known to the fields that they hold.

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
    """Convert the values of an entry; absent values (None) are left out.

    Args:
        entry: values by the manifest's own column names.
        fields: see `fields_named`.
        folder: of the manifest, where relative paths begin.

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
    """Convert one value of the column `name` as the manifest's column `field` does.

    Raises:
        Malformed: see `typed`.
    """
    try:
        return COLUMNS[field].value(value)
    except field_values.Unfit as unfit:
        words = "no text in UTF-8" if unfit.reason == field_values.NOT_UTF8 else f"no {COLUMNS[field].accepts}"
        raise Malformed(f"{name} {shortened(value)} is {words}", unfit.reason) from None


def entry_called(entry: Mapping[str, Any], fields: Mapping[str, str]) -> str:
    """The words with which an error names the row of an entry by its id; none where that is not usable."""
    name = next((name for name, field in fields.items() if field == "id"), None)
    value = None if name is None else entry.get(name)
    return f"entry {shortened(value)}: " if isinstance(value, (str, int)) and str(value).strip() else ""


def checked(found: dict[str, Any]) -> dict[str, Any]:
    """Return the typed fields of an entry after checking those that belong together.

    Raises:
        Malformed: features that are not `frames` vectors of float16.
    """
    if "features" in found and not features_fit(len(found["features"]), found.get("frames")):
        size = len(found["features"])
        raise Malformed(f"frames {found.get('frames')} is no number of float16 vectors in {size} bytes of features")
    return found


def features_fit(size: int, frames: int | None) -> bool:
    """Whether so many bytes can be `frames` vectors of float16."""
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
"""Field -> its column, in the order in which manifests are written."""
_FIELD_OF = {name: field for field, column in COLUMNS.items() for name in (field, *column.also)}


class _Short(reprlib.Repr):
    """Shows a value in one line of bearable length, without going through all of it."""

    def __init__(self):
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 60

    def repr_bytes(self, value: bytes, level: int) -> str:
        return f"({len(value)} bytes)"


_short = _Short()


def shortened(value: Any) -> str:
    """A value in one printable line of bearable length."""
    return _printable(_short.repr(value))


def _printable(words: str) -> str:
    return one_line(words.encode("utf-8", "backslashreplace").decode(), 200)
