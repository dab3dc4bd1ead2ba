"""An adapter and a codec as examples of user-defined parts; only the YAML files in this folder refer to them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from omnikit.interfaces import Adapter, Codec
from omnikit.streaming import EXACT, FramewiseStream

LOUDEST, STEP = 0.5, 0.8


class Averaging(Adapter):
    """An adapter that averages `stride` neighbouring frames and applies a linear layer."""

    def __init__(self, *, dim_in: int, dim_out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.layer = nn.Linear(dim_in, dim_out)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.arange(features.shape[1], device=features.device)[None] < lengths[:, None]
        filled = nn.functional.pad(features * inside[..., None], (0, 0, 0, -features.shape[1] % self.stride))
        return self.layer(filled.unflatten(1, (-1, self.stride)).mean(dim=2)), -(-lengths // self.stride)


class Whistle(Codec):
    """A codec with two codes per frame, the loudest pitch and its loudness, which turns speech into a whistled tune.

    A frame holds a whole number of periods. It therefore begins and ends at zero and is decoded without its neighbours.

    Args:
        codebook_size: number of pitches and of loudness steps.
        frame_samples: number of audio samples per frame.
        spacing: difference between neighbouring pitches in periods per frame.
    """

    num_codebooks, sample_rate, lookahead = 2, 16000, 0

    def __init__(self, *, codebook_size: int, frame_samples: int, spacing: int):
        super().__init__()
        self.codebook_size, self.frame_samples, self.spacing = codebook_size, frame_samples, spacing

    def encode(self, wav: Tensor) -> Tensor:
        frames = nn.functional.pad(wav, (0, -wav.shape[1] % self.frame_samples)).unflatten(1, (-1, self.frame_samples))
        periods = self.spacing * torch.arange(1, self.codebook_size + 1, device=wav.device)
        loudness, pitch = (torch.fft.rfft(frames).abs()[..., periods] * 2 / self.frame_samples).max(dim=-1)
        steps = (torch.log(loudness.clamp(min=1e-9) / LOUDEST) / math.log(STEP)).round()
        return torch.stack([pitch, steps.clamp(0, self.codebook_size - 1).long()], dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        periods = self.spacing * (codes[:, 0, :, None] + 1)
        time = torch.arange(self.frame_samples, device=codes.device) / self.frame_samples
        loudness = LOUDEST * STEP ** codes[:, 1, :, None]
        return (loudness * torch.sin(2 * math.pi * periods * time)).flatten(1)

    def stream(self, batch_size: int = 1, mode: str = EXACT) -> FramewiseStream:
        return FramewiseStream(self, batch_size, mode)
