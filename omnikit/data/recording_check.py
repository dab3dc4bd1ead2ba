"""Checks whether the recording of a manifest entry can be used, and encodes waveforms as FLAC."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import soundfile

from omnikit.audio.reader import Source, Unusable, measure


@dataclass(frozen=True)
class RecordingCheck:
    """The result of checking a recording: its length and format, or the reason for skipping it."""

    problem: str | None = None  # reason for skipping the recording, a key of `skipped.REASONS`
    seconds: float = 0.0
    rate: int = 0  # Hz
    channels: int = 0
    notes: tuple[str, ...] = ()  # keys of `reader.NOTES`
    detail: str = ""  # the problem in one line that names the recording


def check_recording(
    source: Source, name: str = "", *, decode_all: bool = False, max_seconds: float | None = None
) -> RecordingCheck:
    """Return whether a sound file, given by its path or its bytes, can be used, and its length and format.

    Args:
        name: name of the recording in messages; "" = its path.
        decode_all: decode the whole file even where its header can be trusted; clipping is detected only then.
        max_seconds: maximum length in seconds; None = `omnikit.audio.reader.LONGEST`.
    """
    name = name or ("recording" if isinstance(source, bytes) else str(source))
    try:
        found = measure(source, name, max_seconds, decode_all=decode_all)
    except Unusable as error:
        return RecordingCheck(error.reason, detail=str(error))
    problem = "clipped" if decode_all and found.clipped else None
    detail = f"{name}: clipped" if problem else ""
    return RecordingCheck(problem, found.seconds, found.rate, found.channels, found.notes, detail)


def encode_flac(wav: np.ndarray, sample_rate: int) -> bytes:
    """Return the bytes of a 16-bit FLAC file with a waveform [N]; samples outside -1..1 are clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wav, -1.0, 1.0), sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
