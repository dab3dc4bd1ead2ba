"""The audio formats of Realtime sessions: 16 bit PCM at 24 kHz, and G.711 (mu-law and A-law) at 8 kHz."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
import soundfile

from omnikit.serve.realtime.actions import RATE
from omnikit.serve.resample import Resampler

_FULL_SCALE = 32768


@dataclass(frozen=True)
class _Format:
    rate: int
    sample_bytes: int
    law: str | None
    """Name of the G.711 law in libsndfile; None = linear 16 bit, little-endian."""


_FORMATS = {
    "audio/pcm": _Format(RATE, 2, None),
    "audio/pcmu": _Format(8000, 1, "ULAW"),
    "audio/pcma": _Format(8000, 1, "ALAW"),
}
FORMATS = tuple(_FORMATS)
"""Names of the audio formats, as the protocol has them."""


class InputAudio:
    """The decoder of one client's audio.

    Args:
        format: one of `FORMATS`.

    Raises:
        ValueError: unknown format; the message lists the choices.
    """

    def __init__(self, format: str):
        self.format = _format(format)
        self.resampler = Resampler(self.format.rate, RATE)
        self.rest = b""

    def push(self, data: bytes) -> np.ndarray:
        """Decode further bytes and return the samples [n] that are final now (float32 in -1..1, at `RATE`).

        A sample of which only the first byte has come is kept until the next call. G.711 lags 4 ms behind.
        """
        data = self.rest + data
        whole = len(data) - len(data) % self.format.sample_bytes
        data, self.rest = data[:whole], data[whole:]
        return self.resampler.push(_decode(data, self.format.law))


class OutputAudio:
    """The encoder of one answer's samples for a client.

    Args:
        format: one of `FORMATS`.
        rate: sample rate of the pushed samples in Hz.

    Raises:
        ValueError: unknown format; the message lists the choices.
    """

    def __init__(self, format: str, rate: int):
        self.format = _format(format)
        self.rate = self.format.rate
        """Sample rate in Hz of the returned audio."""
        self.resampler = Resampler(rate, self.rate)

    def push(self, samples: np.ndarray) -> bytes:
        """Encode further samples [n] (float32) and return the bytes that are final now.

        Samples beyond -1..1 are clipped, those that are no numbers become 0. Where the rates differ, the bytes lag
        4 ms behind the samples.
        """
        finite = np.nan_to_num(np.asarray(samples, np.float32), nan=0.0, posinf=1.0, neginf=-1.0)
        return _encode(self.resampler.push(np.clip(finite, -1, 1)), self.format.law)

    def finish(self) -> bytes:
        """Return the remaining bytes of the answer; the next push begins another one."""
        return _encode(self.resampler.finish(), self.format.law)


def _format(name: str) -> _Format:
    if name not in _FORMATS:
        raise ValueError(f"audio format {name!r}: no such format (choices: {', '.join(FORMATS)})")
    return _FORMATS[name]


def _decode(data: bytes, law: str | None) -> np.ndarray:
    if law is None:
        return np.frombuffer(data, "<i2").astype(np.float32) / _FULL_SCALE
    return _decoded(law)[np.frombuffer(data, np.uint8)]


def _encode(samples: np.ndarray, law: str | None) -> bytes:
    linear = np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype("<i2")
    return linear.tobytes() if law is None else _encoded(law)[linear.astype(np.int32) + _FULL_SCALE].tobytes()


@cache
def _decoded(law: str) -> np.ndarray:
    """Return the samples [256] (float32) of all bytes of a G.711 law."""
    raw = io.BytesIO(bytes(range(256)))
    return soundfile.read(raw, format="RAW", subtype=law, samplerate=8000, channels=1, dtype="float32")[0]


@cache
def _encoded(law: str) -> np.ndarray:
    """Return the bytes [65536] (uint8) of a G.711 law for all 16 bit samples, the lowest first."""
    raw = io.BytesIO()
    linear = np.arange(-_FULL_SCALE, _FULL_SCALE).astype(np.int16)
    soundfile.write(raw, linear, 8000, format="RAW", subtype=law)
    return np.frombuffer(raw.getvalue(), np.uint8)
