"""Changes to training speech: to its waveform (size of the speaker, noise, silence, level) and to log-mel (masks)."""

from __future__ import annotations

import numpy as np
import soxr
import torch
from torch import Tensor

from omnikit.data.noise import add_noise

SAMPLE_RATE = 16000


class Augment:
    """Changes to a training waveform of 16 kHz.

    Args:
        noise_prob: share of the recordings that get noise.
        snr_db: range of its level.
        warp_prob: share of the recordings that are resampled.
        warp: by at most this share.
        silence: longest silence put before and after, seconds; noise, where there is some, covers it.
        gain: range of the factor that sets the level.
        rng: what decides; None = another one in each process.
    """

    def __init__(
        self,
        *,
        noise_prob: float,
        snr_db: tuple[float, float],
        warp_prob: float,
        warp: float,
        silence: float,
        gain: tuple[float, float],
        rng: np.random.Generator | None = None,
    ):
        self.noise_prob, self.snr_db = noise_prob, snr_db
        self.warp_prob, self.warp, self.silence, self.gain = warp_prob, warp, silence, gain
        self.rng = np.random.default_rng() if rng is None else rng

    def __call__(self, wav: np.ndarray) -> np.ndarray:
        """[N] -> [N']."""
        rng = self.rng
        if rng.random() < self.warp_prob:
            rate = SAMPLE_RATE * rng.uniform(1 - self.warp, 1 + self.warp)
            wav = soxr.resample(wav, SAMPLE_RATE, rate, quality="QQ")
        around = rng.integers(0, int(self.silence * SAMPLE_RATE), 2)
        wav = np.pad(wav, tuple(around * (rng.random() < 0.5)))
        if rng.random() < self.noise_prob:
            wav = add_noise(wav, rng.uniform(*self.snr_db), rng)
        return (wav * rng.uniform(*self.gain)).astype(np.float32)


class SpecMask:
    """SpecAugment's masks (Park et al. 2019, section 2) without time warping, drawn per sample."""

    def __init__(self, *, time_masks: int, time_width: int, freq_masks: int, freq_width: int):
        self.along_time, self.along_freq = (time_masks, time_width), (freq_masks, freq_width)

    def __call__(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """[B, n_mels, T] with lengths [B] in frames -> the same with stripes set to zero."""
        hide_time = _stripes(lengths, mel.shape[-1], *self.along_time)
        bands = torch.full_like(lengths, mel.shape[1])
        hide_freq = _stripes(bands, mel.shape[1], *self.along_freq)
        return mel.masked_fill(hide_time[:, None] | hide_freq[:, :, None], 0.0)


def _stripes(lengths: Tensor, size: int, count: int, width: int) -> Tensor:
    """Lengths [B] -> [B, size], True in `count` stripes of 0..width within each length."""
    hidden = torch.zeros(len(lengths), size, dtype=torch.bool)
    position = torch.arange(size)[None]
    for _ in range(count):
        start = (torch.rand(len(lengths)) * lengths).long()[:, None]
        hidden |= (position >= start) & (position < start + torch.randint(0, width + 1, start.shape))
    return hidden
