"""Adapters: networks that map encoder features to the width of the backbone.

A part file names one of these classes with its options; the model adds the widths: `adapter(dim_in=..., dim_out=...)`.
"""

from __future__ import annotations

from torch import Tensor, nn

from omnikit.interfaces import Adapter, lengths_to_mask


class LinearAdapter(Adapter):
    """An adapter of one linear layer with bias (called `mlp` in the published Mini-Omni code)."""

    def __init__(self, *, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.proj(features), lengths


class MLPAdapter(Adapter):
    """An adapter of two linear layers with a GELU between them (Mini-Omni, arXiv 2408.16725, section 3.1).

    Args:
        dim_in: width of the encoder's features.
        dim_out: width of the backbone.
        hidden: width between the layers; None = `dim_out`.
    """

    def __init__(self, *, dim_in: int, dim_out: int, hidden: int | None = None):
        super().__init__()
        hidden = hidden or dim_out
        self.net = nn.Sequential(nn.Linear(dim_in, hidden), nn.GELU(), nn.Linear(hidden, dim_out))

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(features), lengths


class GatedMLPAdapter(Adapter):
    """An adapter that computes `proj(silu(fc_1 x) * fc_2 x)` without biases (`llamamlp` in the published Mini-Omni)."""

    def __init__(self, *, dim_in: int, dim_out: int, hidden: int):
        super().__init__()
        self.fc_1 = nn.Linear(dim_in, hidden, bias=False)
        self.fc_2 = nn.Linear(dim_in, hidden, bias=False)
        self.proj = nn.Linear(hidden, dim_out, bias=False)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.proj(nn.functional.silu(self.fc_1(features)) * self.fc_2(features)), lengths


class ConcatAdapter(Adapter):
    """An adapter that concatenates `stride` neighbouring frames and applies two linear layers.

    This is the projector of SLAM-ASR (arXiv 2402.08846, section 3). The last group of frames of a recording is padded
    with zeros.
    """

    def __init__(self, *, dim_in: int, dim_out: int, stride: int, hidden: int | None = None):
        super().__init__()
        self.stride = _checked_stride(stride)
        self.mlp = MLPAdapter(dim_in=dim_in * stride, dim_out=dim_out, hidden=hidden)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        batch, frames, dim = features.shape
        features = features * lengths_to_mask(lengths, frames)[..., None]
        features = nn.functional.pad(features, (0, 0, 0, -frames % self.stride))
        stacked = features.reshape(batch, -1, self.stride * dim)
        return self.mlp(stacked, -(-lengths // self.stride))


class ConvAdapter(Adapter):
    """An adapter of two convolutions over time, the second with stride `stride`, and a linear layer.

    The first convolution sees one frame to either side of each frame, the second one frame to either side of each group
    of `stride` frames. Frames past the end of a recording are set to zero, so padding does not change its features. The
    width between the layers, `hidden`, defaults to `dim_out`.
    """

    def __init__(self, *, dim_in: int, dim_out: int, stride: int, hidden: int | None = None):
        super().__init__()
        self.stride = _checked_stride(stride)
        hidden = hidden or dim_out
        self.conv1 = nn.Conv1d(dim_in, hidden, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(hidden, hidden, kernel_size=stride + 2, stride=stride, padding=1)
        self.proj = nn.Linear(hidden, dim_out)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = features.shape[1]
        inside = lengths_to_mask(lengths, frames)[:, None]
        x = nn.functional.gelu(self.conv1(features.transpose(1, 2) * inside)) * inside
        x = nn.functional.gelu(self.conv2(nn.functional.pad(x, (0, -frames % self.stride))))
        return self.proj(x.transpose(1, 2)), -(-lengths // self.stride)


def _checked_stride(stride: int) -> int:
    if stride < 1:
        raise ValueError(f"adapter.stride: {stride}; it must be 1 or more")
    return stride
