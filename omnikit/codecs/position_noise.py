"""Noise that depends on where it stands and on nothing else, so that pieces hear what the whole does."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from omnikit.counter_rng import GOLDEN, hash32


class PositionNoise(nn.Module):
    """Does what SNAC's `NoiseBlock` does, with normal noise drawn by position instead of by a generator.

    Args:
        linear: the block's own projection, kept under its name so that trained weights fit.
        salt: makes the noise of one block differ from that of another.
    """

    def __init__(self, linear: nn.Module, salt: int):
        super().__init__()
        self.linear, self.salt = linear, salt

    def forward(self, x: Tensor) -> Tensor:
        """The whole input [B, D, N] -> [B, D, N]."""
        return x + self.noise(x, first=torch.zeros(1, dtype=torch.int64, device=x.device)) * self.linear(x)

    def noise(self, x: Tensor, first: Tensor) -> Tensor:
        """Return what the projection of x [B, D, N] is multiplied with [B, 1, N], or [1, 1, N] where `first`, the
        position of the whole at which each row begins [B], is one for all [1]. In training the noise is fresh."""
        if self.training:
            return torch.randn_like(x[:, :1])
        positions = first[:, None] + torch.arange(x.shape[-1], device=x.device)
        return normal_at(positions, self.salt)[:, None].to(x)


def replace_noise(decoder: nn.Module) -> None:
    """Put a `PositionNoise` in place of every noise block of SNAC's decoder, salted with the samples per position."""
    blocks, samples = [block for block in decoder.model if hasattr(block, "block")], 1
    for block in reversed(blocks):
        for name, layer in block.block.named_children():
            if type(layer).__name__ == "NoiseBlock":
                block.block[int(name)] = PositionNoise(layer.linear, salt=samples)
            if isinstance(layer, nn.ConvTranspose1d):
                samples_below = samples * layer.stride[0]
        samples = samples_below


def normal_at(positions: Tensor, salt: int) -> Tensor:
    """Standard normal values [...] that depend on integer positions [...] alone (Box-Muller on hashed positions)."""
    first, second = (uniform_at(positions * 2 + half, salt) for half in (0, 1))
    return (-2 * first.log()).sqrt() * torch.cos(2 * math.pi * second)


def uniform_at(positions: Tensor, salt: int) -> Tensor:
    """Values in (0, 1], float64, from hashed positions."""
    return (hash32(positions + salt * GOLDEN).double() + 1) / 2**32
