"""Parses JSON texts that hold long audio without holding up the event loop.

The decoder of Python's standard library takes tens of milliseconds for 15 MiB of audio, and seconds for as much text in
millions of small values. It holds the interpreter's lock all the time, so a thread would not help. Audio as base64 is
cut out here by searches for single characters, which are many times as fast, and the rest is bounded: 1 MiB of the
smallest values takes a tenth of a second.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from typing import Any

LONG = 2**16
"""Number of characters from which on texts are decoded in this way, and strings are cut out."""
MOST_REST = 2**20
"""Maximum number of characters of a text besides its long audio."""
_MOST_CUT = 128  # strings; each search for one goes on where the last one ended
_NAMES = ('"audio"', '"data"')  # of values that hold audio
_BEGIN = re.compile(r'\s*:\s*"')


class TooLong(ValueError):
    """Error raised for a JSON text that is too long even without its audio."""

    def __init__(self) -> None:
        super().__init__(f"too long: at most {MOST_REST // 2**20} MiB of JSON besides the audio")


def loads(text: str, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Decode a JSON text like `json.loads`, which is slow for long audio.

    Args:
        text: the text.
        parse_constant: see `json.loads`.

    Raises:
        TooLong: more than `MOST_REST` characters are no long audio.
        ValueError: no JSON.
        RecursionError: it is nested too deeply.
    """
    if len(text) < LONG:
        return json.loads(text, parse_constant=parse_constant)
    cut: dict[str, str] = {}
    for name in _NAMES:
        text = _without_audio(text, name, cut)
    if len(text) > MOST_REST:
        raise TooLong
    value = json.loads(text, parse_constant=parse_constant)
    return _restored(value, cut) if cut else value


def _without_audio(text: str, name: str, cut: dict[str, str]) -> str:
    """Replace the long strings after a name such as `"audio"` by random keys, and store the strings in `cut`.

    The quote after a name and its colon begins a string, and the next quote ends it unless a backslash precedes it.
    """
    parts, done, at = [], 0, text.find(name)
    for _ in range(_MOST_CUT):
        if at < 0:
            break
        at += len(name)
        if (found := _BEGIN.match(text, at)) is not None:
            begin, end = found.end(), text.find('"', found.end())
            audio = text[begin:end] if end - begin >= LONG else "\\"
            if "\\" in audio:  # searched for first, since it is ten times as fast as longer words
                audio = audio.replace("\\/", "/")  # as some encoders write a slash
            if "\\" not in audio:
                key = secrets.token_hex(16)
                cut[key] = audio
                parts += [text[done:begin], key]
                done = at = end
        at = text.find(name, at)
    return "".join([*parts, text[done:]])


def _restored(value: Any, cut: dict[str, str]) -> Any:
    """Return a value in which the keys of audio are replaced by the audio."""
    if isinstance(value, str):
        return cut.get(value, value)
    if isinstance(value, list):
        return [_restored(each, cut) for each in value]
    if isinstance(value, dict):
        return {name: _restored(each, cut) for name, each in value.items()}
    return value
