"""Additive coloured noise at a given signal-to-noise ratio, for training data and noisy test sets."""

from __future__ import annotations

import numpy as np


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
    gain = np.sqrt(np.mean(wav**2) / max(np.mean(noise**2), 1e-12)) * 10 ** (-snr_db / 20)
    noisy = wav + gain * noise
    return (noisy / max(1.0, float(np.abs(noisy).max()))).astype(np.float32)
