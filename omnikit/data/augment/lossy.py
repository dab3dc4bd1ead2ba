"""Artefacts of lossy sound formats and of telephone lines, by encoding and decoding waveforms."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import soxr

from omnikit.data.augment.effect import Effect, of_length, scipy_module
from omnikit.hparams.name_lookup import nearest
from omnikit.option_ranges import Range

_BLOCK = 8192  # samples; libsndfile encodes Vorbis on the stack, which a long recording at once overflows
_TELEPHONE_RATE = 8000
_SHARE = Range(0, 1)


@dataclass(frozen=True)
class SoundFormat:
    """A lossy format that libsndfile writes.

    Args:
        container, subtype: its names for `soundfile`.
        compression: range of libsndfile's compression level from 0 (best quality) to 1; None = it has no levels.
    """

    container: str
    subtype: str
    compression: tuple[float, float] | None = None


FORMATS = {
    # bits per second of 4 s of noise like speech at 16 kHz, over the range of compression, libsndfile 1.2.2
    "mp3": SoundFormat("MP3", "MPEG_LAYER_III", (0.6, 0.99)),  # 62 to 18 kbit/s, variable bit rate
    "vorbis": SoundFormat("OGG", "VORBIS", (0.5, 1.0)),  # 38 to 31 kbit/s
    "opus": SoundFormat("OGG", "OPUS", (0.9, 0.98)),  # 31 to 12 kbit/s; takes five times as long as the others
    # telephone lines, at 8 kHz: G.711 of wired ones in America and Japan (mu-law) and elsewhere (A-law), GSM full rate
    "ulaw": SoundFormat("WAV", "ULAW"),  # 64 kbit/s
    "alaw": SoundFormat("WAV", "ALAW"),  # 64 kbit/s
    "gsm": SoundFormat("WAV", "GSM610"),  # 13 kbit/s
}
"""Mapping from the names of formats in recipes to their descriptions."""


def decoded(wav: np.ndarray, rate: int, name: str, strength: float) -> np.ndarray:
    """Return a waveform [N] (float32) after encoding it in a lossy format and decoding it, aligned in time.

    Args:
        rate: sample rate in Hz, one of those that the format has.
        name: name of the format in `FORMATS`.
        strength: place in the format's range of compression, 0..1.
    """
    kind, level, buffer = FORMATS[name], {}, io.BytesIO()
    if kind.compression is not None:
        low, high = kind.compression
        level["compression_level"] = low + strength * (high - low)
    with soundfile.SoundFile(
        buffer, "w", rate, channels=1, format=kind.container, subtype=kind.subtype, **level
    ) as file:
        for start in range(0, len(wav), _BLOCK):
            file.write(np.clip(wav[start : start + _BLOCK], -1.0, 1.0))  # formats of whole numbers wrap around
    buffer.seek(0)
    return of_length(soundfile.read(buffer, dtype="float32")[0], len(wav))


class LossyFormat(Effect):
    """Encoding in a lossy format at a low rate, as of voice messages and videos, and decoding.

    Args:
        probability: share of the recordings that are changed.
        formats: names of formats in `FORMATS`, one of which is chosen.
        strength: range of the compression, 0..1.
    """

    key = "format"

    def __init__(self, *, probability: float, formats: Sequence[str], strength: Sequence[float] = (0.0, 1.0)):
        super().__init__(probability)
        self.formats = _known(self._flag("formats"), formats)
        self.strength = self._between("strength", strength, _SHARE)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"name": self.formats[rng.integers(len(self.formats))], "strength": rng.uniform(*self.strength)}

    def apply(self, wav: np.ndarray, rate: int, rng: np.random.Generator, *, name: str, strength: float) -> np.ndarray:
        return decoded(wav, rate, name, strength) if len(wav) else wav


class Telephone(Effect):
    """The band of a telephone: resampling to 8 kHz and back, with the line's band-pass and format in between.

    Args:
        probability: share of the recordings that are changed.
        line: probability that a changed recording also passes the band-pass of analogue lines.
        band: the two edges of the band-pass in Hz.
        formats: names of formats in `FORMATS` that the 8 kHz are encoded in, one of which is chosen; `none` = not
            encoded.
    """

    def __init__(
        self,
        *,
        probability: float,
        line: float = 0.5,
        band: Sequence[float] = (300.0, 3400.0),
        formats: Sequence[str] = ("none", "ulaw", "alaw", "gsm"),
    ):
        super().__init__(probability)
        _SHARE.check(self._flag("line"), line)
        self.line, self.formats = line, _known(self._flag("formats"), formats, "none")
        self.band = self._between("band", band, Range(1, _TELEPHONE_RATE / 2 - 1))

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        name = self.formats[rng.integers(len(self.formats))]
        return {"line": bool(rng.random() < self.line), "name": name, "strength": rng.random()}

    def apply(
        self, wav: np.ndarray, rate: int, rng: np.random.Generator, *, line: bool, name: str, strength: float
    ) -> np.ndarray:
        signal, narrow = scipy_module("signal"), soxr.resample(wav, rate, _TELEPHONE_RATE)
        if line and len(narrow):
            stages = signal.butter(4, self.band, "bandpass", fs=_TELEPHONE_RATE, output="sos")
            # forwards and back, without delay
            narrow = signal.sosfiltfilt(stages, narrow, padtype=None).astype(np.float32)
        if name != "none" and len(narrow):
            narrow = decoded(narrow, _TELEPHONE_RATE, name, strength)
        return of_length(soxr.resample(narrow, _TELEPHONE_RATE, rate), len(wav)).astype(np.float32)


def _known(flag: str, names: Sequence[str], *others: str) -> tuple[str, ...]:
    """Return the names of formats after checking them.

    Raises:
        ValueError: there is none, or one is unknown.
    """
    choices = (*FORMATS, *others)
    if isinstance(names, str) or not names:
        raise ValueError(f"--{flag} {names}: must be a list of formats (choices: {', '.join(choices)})")
    for name in names:
        if name not in choices:
            raise ValueError(f"--{flag} {name}: no such format{nearest(name, choices)}")
    return tuple(names)
