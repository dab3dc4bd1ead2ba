"""Recordings of short texts for the miniatures of suites, spoken by espeak-ng with several voices."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache

import soundfile

from omnikit.prepare.espeak import synthesize

VOICES = ("en-us", "en-us+f3", "en-gb", "en-us+m3")


@cache
def spoken(text: str, number: int = 0, format: str = "WAV", voices: Sequence[str] = VOICES) -> bytes:
    """Return a sound file of a text, in the voice of a number."""
    wav, rate = synthesize(text, voices[number % len(voices)], sample_rate=16000)
    buffer = io.BytesIO()
    soundfile.write(buffer, wav, rate, format=format)
    return buffer.getvalue()
