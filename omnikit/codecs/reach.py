"""How far a convolutional decoder looks to each side of what it is given."""

from __future__ import annotations

import math

from snac.attention import LocalMHA
from torch import nn


def decoder_reach(decoder: nn.Module) -> int:
    """Samples at the edge of a piece that differ from the whole decoding because neighbours were zeros there.

    Followed through the layers from either side; a layer's edge is wrong where its kernel looks past the last right
    position of its input. Attention within windows makes whole windows wrong; a piece must begin and end with one.
    """
    left = right = 0
    for layer in decoder.modules():
        if isinstance(layer, nn.ConvTranspose1d):
            (kernel,), (stride,), (padding,) = layer.kernel_size, layer.stride, layer.padding
            left, right = left * stride + kernel - stride - padding, right * stride + padding
        elif isinstance(layer, nn.Conv1d):
            (kernel,), (dilation,), (padding,) = layer.kernel_size, layer.dilation, layer.padding
            left, right = left + padding, right + (kernel - 1) * dilation - padding
        elif isinstance(layer, LocalMHA):
            left, right = (math.ceil(side / layer.window_size) * layer.window_size for side in (left, right))
    return max(left, right)
