"""SpecAugment masks for log-mel spectrograms."""

from __future__ import annotations

import torch
from torch import Tensor


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
