"""Additive coloured noise at a given signal-to-noise ratio, for training data and noisy test sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omnikit.data.augment.effect import Effect, scipy_module, speech_power, within_full_scale
from omnikit.option_ranges import Range


def coloured_noise(samples: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Return Gaussian noise [N] (float32) whose power falls as frequency ** -exponent: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    bins = np.maximum(np.arange(len(spectrum)), 1.0)
    return np.fft.irfft(spectrum * bins ** (-exponent / 2), samples).astype(np.float32)


def add_noise(wav: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """Return speech [N] with added noise of a random colour (exponent 0..1.5) at a signal-to-noise ratio in dB.

    The ratio is that of the mean powers. If the sum exceeds -1..1, it is scaled down to that range.
    """
    noise = coloured_noise(len(wav), float(rng.uniform(0.0, 1.5)), rng)
    return _mixed(wav, noise, snr_db, np.mean(wav**2))


def _mixed(wav: np.ndarray, noise: np.ndarray, snr_db: float, power: float) -> np.ndarray:
    """Return the sum of speech [N] of a given power and noise [N], scaled to a signal-to-noise ratio in dB."""
    gain = np.sqrt(power / max(np.mean(noise**2), 1e-12)) * 10 ** (-snr_db / 20)
    return within_full_scale(wav + gain * noise)


class Noise(Effect):
    """Added stationary noise of a random colour, as of fans, engines and the microphone.

    Args:
        probability: share of the recordings that are changed.
        snr_db: range of the ratio of the speech's power, without pauses, to that of the noise, in dB.
        exponent: range of the noise's colour: 0 white, 1 pink, 2 brown.
    """

    def __init__(self, *, probability: float, snr_db: Sequence[float], exponent: Sequence[float] = (0.0, 1.5)):
        super().__init__(probability)
        self.snr_db = self._between("snr_db", snr_db, Range(-40, 100))
        self.exponent = self._between("exponent", exponent, Range(0, 3))

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"snr_db": rng.uniform(*self.snr_db), "exponent": rng.uniform(*self.exponent)}

    def apply(
        self, wav: np.ndarray, rate: int, rng: np.random.Generator, *, snr_db: float, exponent: float
    ) -> np.ndarray:
        if not len(wav):
            return wav
        noise = coloured_noise(scipy_module("fft").next_fast_len(len(wav), real=True), exponent, rng)[: len(wav)]
        return _mixed(wav, noise, snr_db, speech_power(wav, rate))
