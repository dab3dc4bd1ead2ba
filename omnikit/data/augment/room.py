"""Reverberation by synthetic impulse responses of rooms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omnikit.data.augment.effect import Effect, scipy_module, speech_power, within_full_scale
from omnikit.option_ranges import Range

_FIRST = 0.002  # seconds after which the first reflection arrives: a detour of 0.7 m
_DENSE = 0.05  # seconds after which reflections merge to a noise-like tail, see Kuttruff, Room Acoustics, chapter 4
_SPARSEST = 0.02  # share of the samples with a reflection at first


def impulse_response(rt60: float, drr_db: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Return the impulse response [N] (float32) of a random room, which begins with the direct sound of amplitude 1.

    Reflections are Gaussian noise whose power decays by 60 dB in `rt60` seconds (Polack's model). In the first 50 ms
    they are few and strong, since the echoes of single walls arrive apart, and become denser with time at the same mean
    power.

    Args:
        rt60: reverberation time in seconds.
        drr_db: direct-to-reverberant ratio, of the energy of the direct sound to that of all reflections, in dB.
        rate: sample rate in Hz.
    """
    time = np.arange(max(2, round(rt60 * rate))) / rate
    density = np.clip(time / _DENSE, _SPARSEST, 1.0)
    present = (rng.random(len(time)) < density) & (time >= _FIRST)
    reflections = rng.standard_normal(len(time)) * present / np.sqrt(density) * 10 ** (-3 * time / rt60)
    energy = np.sum(reflections**2)
    response = reflections * np.sqrt(10 ** (-drr_db / 10) / max(energy, 1e-12))
    response[0] = 1.0
    return response.astype(np.float32)


class Room(Effect):
    """Reverberation of a random room, at the loudness of the dry speech.

    The direct sound stays where it is in time; the waveform keeps its length, so that reverberation after its end is
    cut off.

    Args:
        probability: share of the recordings that are changed.
        rt60: range of the reverberation time in seconds, after which the room's sound has decayed by 60 dB.
        drr_db: range of the direct-to-reverberant ratio in dB; the farther the speaker, the lower.
    """

    def __init__(self, *, probability: float, rt60: Sequence[float], drr_db: Sequence[float]):
        super().__init__(probability)
        self.rt60 = self._between("rt60", rt60, Range(0.01, 10))
        self.drr_db = self._between("drr_db", drr_db, Range(-40, 60))

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        return {
            "rt60": rng.uniform(*self.rt60),
            "drr_db": rng.uniform(*self.drr_db),
            "seed": int(rng.integers(2**32)),  # the same room for all recordings with these settings
        }

    def apply(
        self, wav: np.ndarray, rate: int, rng: np.random.Generator, *, rt60: float, drr_db: float, seed: int
    ) -> np.ndarray:
        response = impulse_response(rt60, drr_db, rate, np.random.default_rng(seed))
        wet = scipy_module("signal").fftconvolve(wav, response)[: len(wav)]
        gain = np.sqrt(speech_power(wav, rate) / max(speech_power(wet, rate), 1e-12))
        return within_full_scale(gain * wet)
