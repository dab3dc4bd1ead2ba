"""Recordings as rows name them: whether one can be used, and FLAC bytes of a waveform."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import soundfile

from omnikit.audio.reader import Source, Unusable, measure


@dataclass(frozen=True)
class RecordingCheck:
    """Result of checking a recording: its length and format, or the reason for leaving it out."""

    problem: str | None = None  # a key of `skipped.REASONS`: why the recording is left out
    seconds: float = 0.0
    rate: int = 0  # Hz
    channels: int = 0
    notes: tuple[str, ...] = ()  # keys of `reader.NOTES`
    detail: str = ""  # of the problem, in one line that names the recording


def check_recording(
    source: Source, name: str = "", *, decode_all: bool = False, max_seconds: float | None = None
) -> RecordingCheck:
    """Check a sound file or its bytes; the verdict is that of `omnikit.audio.reader.measure`.

    Args:
        name: what the detail calls the recording; "" = its path.
        decode_all: decode what would be trusted by its header; only then clipping is looked for.
        max_seconds: longer ones are a problem; None = `omnikit.audio.reader.LONGEST`.
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
    """A waveform [N] in -1..1 as a FLAC file of 16 bit; what is outside is clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wav, -1.0, 1.0), sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
