"""The forms in which a manifest may give a value: functions from each accepted one to the type of its field, and the
Parquet types that can hold them. `manifest_columns.py` says which column takes which."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

BETWEEN = "|"
"""Separates accepted answers that are written as one text, as in CSV."""
MALFORMED, NOT_UTF8 = "malformed", "not UTF-8"
"""Reasons under which an entry is counted."""
LARGEST_CODE = np.iinfo(np.int16).max
_LONGEST_NAME = 255  # bytes; no common file system takes a longer part of a path


class Unfit(Exception):
    """A value that is not of the form wanted; `reason` is the one under which its entry is counted."""

    def __init__(self, reason: str = MALFORMED):
        self.reason = reason


def text(value: Any) -> str:
    """Return a text as it is and a whole number in digits."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise Unfit
    try:
        value.encode()  # bytes that are no UTF-8 stand in a text as surrogates
    except UnicodeEncodeError:
        raise Unfit(NOT_UTF8) from None
    return value


def accepted_answers(value: Any) -> list[str]:
    """Accepted answers from a list, or from one text with `BETWEEN` between them; blank ones are dropped."""
    texts = value if isinstance(value, (list, tuple)) else text(value).split(BETWEEN)
    return [answer for each in texts if each is not None and (answer := text(each).strip())]


def name(value: Any) -> str:
    """Return a text that is not blank, or a whole number in digits."""
    found = text(value)
    if not found.strip():
        raise Unfit
    return found


def recording(value: Any) -> str | bytes | None:
    """Return a path or the bytes of a sound file, given as such or as `{bytes, path}`; None where all are absent."""
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
    """Return a number, or one written as text, that is finite and not negative; None for NaN, with which tables say
    that a number is absent."""
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
    """Return a whole number above 0 that fits in 32 bits; None for NaN, see `seconds`."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise Unfit
    return value


def codes(value: Any) -> np.ndarray:
    """Codes as int16 [K, T]."""
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
    """Return bytes as they are."""
    if not isinstance(value, bytes):
        raise Unfit
    return value


def is_text(kind: pa.DataType) -> bool:
    """Whether a Parquet type is text of any width, or a dictionary of such."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a Parquet type is bytes of any width."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def is_sound_struct(kind: pa.DataType) -> bool:
    """Whether a Parquet type is `{bytes, path}`, as `datasets` writes recordings."""
    if not pa.types.is_struct(kind):
        return False
    parts = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    known = [(parts[name], fits) for name, fits in (("bytes", is_bytes), ("path", is_text)) if name in parts]
    return bool(known) and all(pa.types.is_null(part) or fits(part) for part, fits in known)


def is_name(kind: pa.DataType) -> bool:
    """Whether a Parquet type is text or whole numbers."""
    return is_text(kind) or pa.types.is_integer(kind)


def is_list(kind: pa.DataType, of: Callable[[pa.DataType], bool]) -> bool:
    """Whether a Parquet type is lists of a type for which `of` holds."""
    return _lists(kind) and of(kind.value_type)


def is_number(kind: pa.DataType) -> bool:
    """Whether a Parquet type is numbers, or text that may hold them."""
    return is_name(kind) or pa.types.is_floating(kind)


def is_sound(kind: pa.DataType) -> bool:
    """Whether a Parquet type can hold recordings or their paths."""
    return is_text(kind) or is_bytes(kind) or is_sound_struct(kind)


def is_answers(kind: pa.DataType) -> bool:
    """Whether a Parquet type can hold several answers."""
    return is_name(kind) or is_list(kind, is_name)


def is_codes(kind: pa.DataType) -> bool:
    """Whether a Parquet type can hold codes [K, T]."""
    return is_list(kind, lambda books: is_list(books, pa.types.is_integer))


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the plain Parquet type to which both can be cast without loss of what a manifest means; None if there is
    none. Plain types are neither dictionaries nor views."""
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
    """Return the struct of the fields of the first one, each of the type that both have in common."""
    others = {other.field(i).name: other.field(i).type for i in range(other.num_fields)}
    parts = {one.field(i).name: one.field(i).type for i in range(one.num_fields)}
    found = [(name, common_type(kind, others.get(name, kind))) for name, kind in parts.items()]
    return None if any(kind is None for _, kind in found) else pa.struct(found)


def _lists(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_large(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
