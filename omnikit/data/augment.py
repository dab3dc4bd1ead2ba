"""Data augmentation for speech: resampling, noise, silence and gain for waveforms, SpecAugment masks for log-mel."""

from __future__ import annotations

import numpy as np
import soxr
import torch
from torch import Tensor

from omnikit.data.noise import add_noise

SAMPLE_RATE = 16000


class Augment:
    """Random augmentation of 16 kHz training waveforms: resampling, silence, noise and gain.

    Args:
        noise_prob: probability of adding noise.
        snr_db: range of the signal-to-noise ratio in dB.
        warp_prob: probability of resampling, which changes speed and pitch.
        warp: maximum relative change of the sample rate.
        silence: maximum silence added before and after the speech, each in seconds; added noise covers it, too.
        gain: range of the factor that the waveform is multiplied by.
        rng: random generator; None = a new, unseeded one in each process.
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
        """Return an augmented copy [N'] of a waveform [N]."""
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
    """Random time and frequency masks of SpecAugment (Park et al. 2019, section 2), drawn per sample, without warping.

    Args:
        time_masks: number of masks along time.
        time_width: maximum width of a time mask in frames.
        freq_masks: number of masks along frequency.
        freq_width: maximum width of a frequency mask in mel bands.
    """

    def __init__(self, *, time_masks: int, time_width: int, freq_masks: int, freq_width: int):
        self.along_time, self.along_freq = (time_masks, time_width), (freq_masks, freq_width)

    def __call__(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Return log-mel spectrograms [B, n_mels, T], `lengths` [B] in frames, with masked stripes set to zero."""
        hide_time = _stripes(lengths, mel.shape[-1], *self.along_time)
        bands = torch.full_like(lengths, mel.shape[1])
        hide_freq = _stripes(bands, mel.shape[1], *self.along_freq)
        return mel.masked_fill(hide_time[:, None] | hide_freq[:, :, None], 0.0)


def _stripes(lengths: Tensor, size: int, count: int, width: int) -> Tensor:
    """Return a mask [B, size] that is True in `count` random stripes of width 0..`width`, starting within `lengths`."""
    hidden = torch.zeros(len(lengths), size, dtype=torch.bool)
    position = torch.arange(size)[None]
    for _ in range(count):
        start = (torch.rand(len(lengths)) * lengths).long()[:, None]
        hidden |= (position >= start) & (position < start + torch.randint(0, width + 1, start.shape))
    return hidden
