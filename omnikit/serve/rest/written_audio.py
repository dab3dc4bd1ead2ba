"""Audio in the formats of OpenAI's clients, written whole or while the samples are still being generated."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
import soundfile

from omnikit.serve.audio_formats import OutputAudio
from omnikit.serve.realtime.actions import RATE
from omnikit.serve.resample import Resampler

_ENDLESS = 2**32 - 1
"""Size in the header of a wav file whose length was not known when the header was written."""
_HEADER = 44  # bytes


@dataclass(frozen=True)
class AudioFormat:
    """A format of audio files, with the options by which soundfile writes it; None = 16 bit samples, written here."""

    media_type: str
    options: dict[str, str] | None = None


_KNOWN = {
    "mp3": AudioFormat("audio/mpeg", {"format": "MP3", "subtype": "MPEG_LAYER_III"}),
    "opus": AudioFormat("audio/ogg", {"format": "OGG", "subtype": "OPUS"}),
    "flac": AudioFormat("audio/flac", {"format": "FLAC", "subtype": "PCM_16"}),
    "wav": AudioFormat("audio/wav"),
    "pcm": AudioFormat("audio/pcm"),
}
FORMATS = {
    name: known for name, known in _KNOWN.items()
    if known.options is None or known.options["subtype"] in soundfile.available_subtypes(known.options["format"])
}  # fmt: skip
"""Mapping from OpenAI's names to the formats that the installed libsndfile writes; never AAC."""


def check_format(name: str) -> str:
    """Return the name of a format if audio can be written in it.

    Raises:
        ValueError: the name is unknown, or libsndfile does not write the format.
    """
    if name not in FORMATS:
        raise ValueError(f"format {name!r}: cannot be written (choices: {', '.join(FORMATS)})")
    return name


class AudioWriter(Protocol):
    """A writer that returns the bytes of an audio file at `RATE` Hz while its samples are still being generated."""

    def push(self, samples: np.ndarray) -> bytes:
        """Return the bytes that can be sent once these samples [n] in -1..1 have arrived; they may be none."""

    def finish(self) -> bytes:
        """Return the remaining bytes of the file; no more samples may follow."""


def open_writer(name: str, rate: int) -> AudioWriter:
    """Return a writer of one audio file whose length is not known yet.

    The header of a wav file then states the greatest length, FLAC states none, and MP3 lacks the number of frames by
    which players remove the silence of the encoder's delay. A page of Opus in Ogg holds about a second.

    Args:
        name: a name in `FORMATS`.
        rate: sample rate of the samples in Hz.
    """
    if name == "pcm":
        return OutputAudio("audio/pcm", rate)
    return _WavWriter(rate) if name == "wav" else _FileWriter(_Appended(), name, rate)


def encoded(samples: np.ndarray, rate: int, name: str) -> bytes:
    """Return whole speech, samples [N] in -1..1 at `rate` Hz, as the bytes of a file at `RATE` Hz.

    Args:
        name: a name in `FORMATS`.
    """
    if FORMATS[name].options is None:
        pcm = OutputAudio("audio/pcm", rate)
        data = pcm.push(samples) + pcm.finish()
        return _wav_header(len(data)) + data if name == "wav" else data
    file = io.BytesIO()
    writer = _FileWriter(file, name, rate)
    writer.push(samples)
    writer.finish()
    return file.getvalue()


class _WavWriter:
    def __init__(self, rate: int):
        self._samples, self._header = OutputAudio("audio/pcm", rate), _wav_header()

    def push(self, samples: np.ndarray) -> bytes:
        header, self._header = self._header, b""
        return header + self._samples.push(samples)

    def finish(self) -> bytes:
        return self._header + self._samples.finish()


def _wav_header(size: int = _ENDLESS) -> bytes:
    """Return the header of a mono 16 bit wav file at `RATE` Hz.

    Args:
        size: number of bytes of its samples; `_ENDLESS` = unknown.
    """
    after = size if size == _ENDLESS else size + _HEADER - 8  # bytes after the size of the whole
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", after, b"WAVE") + layout + struct.pack("<4sI", b"data", size)


class _FileWriter:
    """A writer of a format of libsndfile.

    Args:
        file: file-like object that is written to; the writer returns nothing unless it is an `_Appended`.
        name: a name in `FORMATS`.
        rate: sample rate of the samples in Hz.
    """

    def __init__(self, file: BinaryIO | _Appended, name: str, rate: int):
        self._resampler = Resampler(rate, RATE)
        self._file = file
        self._coder = soundfile.SoundFile(file, "w", RATE, 1, **FORMATS[name].options)

    def push(self, samples: np.ndarray) -> bytes:
        return self._write(self._resampler.push(samples))

    def finish(self) -> bytes:
        written = self._write(self._resampler.finish())
        self._coder.close()
        return written + self._taken()

    def _write(self, samples: np.ndarray) -> bytes:
        self._coder.write(samples.clip(-1, 1))
        return self._taken()

    def _taken(self) -> bytes:
        return self._file.take() if isinstance(self._file, _Appended) else b""


class _Appended:
    """A file-like object for libsndfile that hands out what is appended, and drops later changes of the header."""

    def __init__(self) -> None:
        self._pending, self._size, self._at = bytearray(), 0, 0

    def write(self, data: bytes) -> int:
        self._pending += bytes(data)[max(0, self._size - self._at) :]
        self._at += len(data)
        self._size = max(self._size, self._at)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def take(self) -> bytes:
        """Return what was appended since the last call."""
        taken, self._pending = bytes(self._pending), bytearray()
        return taken
