"""Recordings as files: whether one can be used (of its header and last samples, or of all of it), and FLAC bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

CLIPPED_SHARE = 0.01
"""Share of full-scale samples from which a recording counts as clipped."""
_FULL_SCALE = 32767
_UNKNOWN_SIZES = (0, 2**32 - 1)  # what a program writes that cannot go back to the header


@dataclass(frozen=True)
class Recording:
    """What a check found; `problem` is a reason for leaving the recording out."""

    problem: str | None = None
    seconds: float = 0.0
    rate: int = 0  # Hz
    channels: int = 0


def check_recording(
    source: str | Path | bytes, *, decode_all: bool = False, max_seconds: float | None = None
) -> Recording:
    """A sound file, or its bytes.

    Args:
        decode_all: read it to its end; only then clipping is found, and damage in the middle.
        max_seconds: longer ones are a problem; None = no limit.
    """
    if not isinstance(source, bytes) and not Path(source).is_file():
        return Recording("missing")
    try:
        head, size = _head(source)
        if not size:
            return Recording("empty")
        if _cut_short(head, size):
            return Recording("unreadable")
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            return _check(file, decode_all, max_seconds)
    except (soundfile.SoundFileError, OSError, UnicodeEncodeError):  # the last: a file name that is not UTF-8
        return Recording("unreadable")


def encode_flac(wav: np.ndarray, sample_rate: int) -> bytes:
    """A waveform [N] in -1..1 as a FLAC file of 16 bit; what is outside is clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wav, -1.0, 1.0), sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _check(file: soundfile.SoundFile, decode_all: bool, max_seconds: float | None) -> Recording:
    if not file.frames:
        return Recording("empty")
    seconds = file.frames / file.samplerate
    if max_seconds is not None and seconds > max_seconds:
        return Recording("too long")
    file.seek(0 if decode_all else file.frames - 1)  # a file cut short has its header but not its end
    samples = file.read(file.frames - file.tell(), dtype="int16", always_2d=True)
    if len(samples) != (file.frames if decode_all else 1):
        return Recording("unreadable")
    if decode_all and np.mean((samples >= _FULL_SCALE) | (samples <= -_FULL_SCALE)) >= CLIPPED_SHARE:
        return Recording("clipped")
    return Recording(None, seconds, file.samplerate, file.channels)


def _head(source: str | Path | bytes) -> tuple[bytes, int]:
    """The first 12 bytes, and the number of all."""
    if isinstance(source, bytes):
        return source[:12], len(source)
    with open(source, "rb") as file:
        return file.read(12), Path(source).stat().st_size


def _cut_short(head: bytes, size: int) -> bool:
    """Whether a wav file is smaller than its header says: libsndfile reads what there is and says nothing."""
    told = int.from_bytes(head[4:8], "little")
    whole = told in _UNKNOWN_SIZES or size >= 8 + told - 1  # some programs leave out the last byte, which is padding
    return head[:4] == b"RIFF" and head[8:12] == b"WAVE" and not whole
