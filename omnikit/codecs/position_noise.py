"""Noise that depends on the position alone, so that a streaming decoder adds the same noise as a whole decoding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from omnikit.counter_rng import GOLDEN, hash32


class PositionNoise(nn.Module):
    """A replacement of SNAC's `NoiseBlock` whose normal noise is a function of the position instead of random draws.

    Args:
        linear: projection of the replaced block, under the same name so that trained weights fit.
        salt: number by which the noise of different blocks differs.
    """

    def __init__(self, linear: nn.Module, salt: int):
        super().__init__()
        self.linear, self.salt = linear, salt

    def forward(self, x: Tensor) -> Tensor:
        """Return a whole input [B, D, N] with noise added to it."""
        return x + self.noise(x, first=torch.zeros(1, dtype=torch.int64, device=x.device)) * self.linear(x)

    def noise(self, x: Tensor, first: Tensor) -> Tensor:
        """Return the noise for a chunk x [B, D, N] of the input: [B, 1, N], or [1, 1, N] where `first` is [1].

        In training mode the noise is drawn anew for each call.

        Args:
            x: chunk of the input [B, D, N].
            first: position in the whole input at which each batch row's chunk begins [B], or one for all of them [1].
        """
        if self.training:
            return torch.randn_like(x[:, :1])
        positions = first[:, None] + torch.arange(x.shape[-1], device=x.device)
        return normal_at(positions, self.salt)[:, None].to(x)


def replace_noise(decoder: nn.Module) -> None:
    """Replace every noise block of SNAC's decoder with a `PositionNoise`, whose salt is its samples per position."""
    blocks, samples = [block for block in decoder.model if hasattr(block, "block")], 1
    for block in reversed(blocks):
        for name, layer in block.block.named_children():
            if type(layer).__name__ == "NoiseBlock":
                block.block[int(name)] = PositionNoise(layer.linear, salt=samples)
            if isinstance(layer, nn.ConvTranspose1d):
                samples_below = samples * layer.stride[0]
        samples = samples_below


def normal_at(positions: Tensor, salt: int) -> Tensor:
    """Return standard normal values [...] as a function of integer positions [...] (Box-Muller on hashed positions)."""
    first, second = (uniform_at(positions * 2 + half, salt) for half in (0, 1))
    return (-2 * first.log()).sqrt() * torch.cos(2 * math.pi * second)


def uniform_at(positions: Tensor, salt: int) -> Tensor:
    """Return uniform values in (0, 1], float64 [...], as a function of integer positions [...], which are hashed."""
    return (hash32(positions + salt * GOLDEN).double() + 1) / 2**32
