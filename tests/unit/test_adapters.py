"""Test the contract of every adapter that has a part file in `hparams/adapter`; a new one is covered by its file."""

from __future__ import annotations

import math

import pytest
import torch

from omnikit.adapters import ConcatAdapter, ConvAdapter
from omnikit.hparams import build_part, choices
from omnikit.interfaces import Adapter

DIM_IN, DIM_OUT, MOST = 6, 10, 14
NAMES = choices("adapter")


def adapter(name: str) -> Adapter:
    torch.manual_seed(0)
    return build_part("adapter", name)(dim_in=DIM_IN, dim_out=DIM_OUT).eval()


def features(frames: int) -> torch.Tensor:
    return torch.randn(1, frames, DIM_IN, generator=torch.Generator().manual_seed(frames))


def check(net: Adapter) -> None:
    """Check that an adapter computes the same for a recording alone and in a padded batch, at each length."""
    batch, lengths = torch.full((MOST, MOST, DIM_IN), 0.7), torch.arange(1, MOST + 1)
    for n in range(1, MOST + 1):
        batch[n - 1, :n] = features(n)
    with torch.inference_mode():
        together, positions = net(batch, lengths)
        assert together.shape == (MOST, math.ceil(MOST / net.stride), DIM_OUT)
        for n in range(1, MOST + 1):
            alone, (length,) = net(features(n), torch.tensor([n]))
            assert length == positions[n - 1] == math.ceil(n / net.stride)
            assert alone.shape == (1, length, DIM_OUT)
            torch.testing.assert_close(together[n - 1, :length], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_lengths_and_padding(name):
    check(adapter(name))


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", [ConcatAdapter, ConvAdapter])
def test_any_stride(kind, stride):
    torch.manual_seed(0)
    check(kind(dim_in=DIM_IN, dim_out=DIM_OUT, stride=stride, hidden=8).eval())


@pytest.mark.parametrize("name", NAMES)
def test_every_frame_counts(name):
    """The gradient of an adapter's output reaches every frame of a recording and no frame of its padding."""
    encoded = features(11).repeat(2, 1, 1).requires_grad_()
    lengths = torch.tensor([11, 6])
    out, positions = adapter(name)(encoded, lengths)
    sum(row[:n].square().sum() for row, n in zip(out, positions, strict=True)).backward()
    reached = encoded.grad.abs().sum(dim=-1) > 0
    assert reached.tolist() == [[True] * 11, [True] * 6 + [False] * 5]


@pytest.mark.parametrize("name", ["concat", "conv"])
def test_a_stride_below_one_is_refused(name):
    with pytest.raises(ValueError, match=r"^--adapter.stride 0: must be 1 or more"):
        build_part("adapter", name, stride=0)(dim_in=DIM_IN, dim_out=DIM_OUT)
