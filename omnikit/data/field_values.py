"""Converters from the accepted forms of a manifest value to the type of its field, and tests of Parquet types.

`manifest_columns.py` assigns them to the columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

BETWEEN = "|"
"""Separator of several accepted answers in one text, as in CSV files."""
MALFORMED, NOT_UTF8 = "malformed", "not UTF-8"
"""Reasons (keys of `skipped.REASONS`) under which an entry with an invalid value is counted."""
LARGEST_CODE = np.iinfo(np.int16).max
_LONGEST_NAME = 255  # bytes; common file systems allow no longer component of a path


class Unfit(Exception):
    """Error raised for a manifest value of an invalid form; `reason` is the reason under which its entry is skipped."""

    def __init__(self, reason: str = MALFORMED):
        self.reason = reason


def text(value: Any) -> str:
    """Convert a manifest value to text: a string is returned unchanged, an integer as a string of digits.

    Raises:
        Unfit: the value is neither, or not encodable as UTF-8.
    """
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise Unfit
    try:
        value.encode()  # fails for surrogates, which stand for bytes that are not UTF-8
    except UnicodeEncodeError:
        raise Unfit(NOT_UTF8) from None
    return value


def accepted_answers(value: Any) -> list[str]:
    """Convert a list, or a string separated by `BETWEEN`, to the list of accepted answers, without blank ones."""
    texts = value if isinstance(value, (list, tuple)) else text(value).split(BETWEEN)
    return [answer for each in texts if each is not None and (answer := text(each).strip())]


def name(value: Any) -> str:
    """Convert a manifest value to text that is not blank: a string is returned unchanged, an integer as digits."""
    found = text(value)
    if not found.strip():
        raise Unfit
    return found


def recording(value: Any) -> str | bytes | None:
    """Convert a manifest value, also a dict `{bytes, path}`, to the path or bytes of a sound file; None if absent."""
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if value is None:
            return None
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise Unfit
    return _path(value) if value.strip() else None


def _path(value: str) -> str:
    path = text(value)
    if "\0" in path or any(len(part.encode()) > _LONGEST_NAME for part in path.split("/")):
        raise Unfit
    return path


def seconds(value: Any) -> float | None:
    """Convert a manifest value, a number or text, to a finite, non-negative number; None for NaN (absent in tables)."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise Unfit
    try:
        found = float(value)
    except (ValueError, OverflowError):
        raise Unfit from None
    if not math.isfinite(found) or found < 0:
        raise Unfit
    return found


def count(value: Any) -> int | None:
    """Convert a manifest value to a positive integer of at most 32 bits; None for NaN (absent in tables)."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise Unfit
    return value


def turn(value: Any) -> int | None:
    """Convert a manifest value, a whole number or text of digits, to an integer of at most 32 bits; None for NaN."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise Unfit
    return value


def codes(value: Any) -> np.ndarray:
    """Return nested lists of codes as an int16 array [K, T].

    Raises:
        Unfit: the lists are empty or of unequal lengths, or hold anything but integers in 0 .. `LARGEST_CODE`.
    """
    try:
        found = np.array(value)
    except (ValueError, OverflowError):  # lists of unequal lengths
        raise Unfit from None
    if found.ndim != 2 or not found.size or found.dtype.kind not in "iu":
        raise Unfit
    if found.min() < 0 or found.max() > LARGEST_CODE:
        raise Unfit
    return found.astype(np.int16)


def data(value: Any) -> bytes:
    """Return a manifest value unchanged if it is bytes, as encoder features are.

    Raises:
        Unfit: the value is not bytes.
    """
    if not isinstance(value, bytes):
        raise Unfit
    return value


def is_text(kind: pa.DataType) -> bool:
    """Return whether a Parquet type is a string type of any width, or a dictionary of strings."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a Parquet type is a binary type of any width."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def is_sound_struct(kind: pa.DataType) -> bool:
    """Return whether a Parquet type is a struct `{bytes, path}`, in which `datasets` stores recordings."""
    if not pa.types.is_struct(kind):
        return False
    parts = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    known = [(parts[name], fits) for name, fits in (("bytes", is_bytes), ("path", is_text)) if name in parts]
    return bool(known) and all(pa.types.is_null(part) or fits(part) for part, fits in known)


def is_name(kind: pa.DataType) -> bool:
    """Return whether a Parquet type is a string or an integer type."""
    return is_text(kind) or pa.types.is_integer(kind)


def is_list(kind: pa.DataType, of: Callable[[pa.DataType], bool]) -> bool:
    """Return whether a Parquet type is a list whose element type satisfies the predicate `of`."""
    return _lists(kind) and of(kind.value_type)


def is_number(kind: pa.DataType) -> bool:
    """Return whether a Parquet type is numeric, or a string type that may hold numbers."""
    return is_name(kind) or pa.types.is_floating(kind)


def is_sound(kind: pa.DataType) -> bool:
    """Return whether a Parquet type can hold recordings or their paths."""
    return is_text(kind) or is_bytes(kind) or is_sound_struct(kind)


def is_answers(kind: pa.DataType) -> bool:
    """Return whether a Parquet type can hold several accepted answers."""
    return is_name(kind) or is_list(kind, is_name)


def is_codes(kind: pa.DataType) -> bool:
    """Return whether a Parquet type can hold codes [K, T], as lists of lists of integers."""
    return is_list(kind, lambda books: is_list(books, pa.types.is_integer))


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the Parquet type to which two types can be cast without loss for a manifest; None if there is none.

    Dictionaries and views are never returned, only the types of their values.
    """
    if pa.types.is_null(one) or pa.types.is_null(other):
        kind = other if pa.types.is_null(one) else one
        return kind if pa.types.is_null(kind) else common_type(kind, kind)
    if is_text(one) and is_text(other):
        return pa.large_string() if _is_large(one) or _is_large(other) else pa.string()
    if is_bytes(one) and is_bytes(other):
        return pa.large_binary() if _is_large(one) or _is_large(other) else pa.binary()
    if is_sound_struct(one) and is_sound_struct(other):
        return _common_struct(one, other)
    if one == other:
        return one
    if _lists(one) and _lists(other):
        kind = common_type(one.value_type, other.value_type)
        return None if kind is None else pa.list_(kind)
    if pa.types.is_integer(one) and pa.types.is_integer(other):
        return pa.int64()
    numbers = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (one, other))
    return pa.float64() if numbers else None


def _common_struct(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return a Parquet struct with the fields of the first one, each of the common type; None if one has none."""
    others = {other.field(i).name: other.field(i).type for i in range(other.num_fields)}
    parts = {one.field(i).name: one.field(i).type for i in range(one.num_fields)}
    found = [(name, common_type(kind, others.get(name, kind))) for name, kind in parts.items()]
    return None if any(kind is None for _, kind in found) else pa.struct(found)


def _lists(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_large(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
