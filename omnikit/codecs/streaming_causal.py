"""Streaming for decoders of causal convolutions and LSTMs (SEANet, as in EnCodec and Mimi).

Each layer stores the end of its input and prepends it to the next chunk, so nothing is computed twice and, except for
the start, there is no lag. The state is a `dict` from layer to tensors [B, ...] that the decode stream holds.

Letters: B batch, D channels, n positions of a chunk, K codebooks.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from omnikit.codecs.joined_streams import JoinableStream, JoinedStreams
from omnikit.codecs.transformers_residual import ResidualCodec
from omnikit.streaming import EXACT, DecodeStream, DecodeStreams, check_mode

Memory = dict[nn.Module, Any]


class CausalCodec(ResidualCodec):
    """Base class for residual codecs whose decoder is causal.

    Decode streams are the same in all modes. They lag only where the decoder pads its start by reflection.
    """

    @abstractmethod
    def decoder_layers(self) -> Iterable[nn.Module]:
        """Return the layers of the convolutional decoder in their order."""

    @abstractmethod
    def decode_next(self, codes: Tensor, memory: Memory) -> Tensor:
        """Decode the codes of the next frames [B, K, n] to samples [B, n * frame_samples], given the layers' state.

        Args:
            codes: codes of the next frames.
            memory: state of the layers after the earlier frames, which is updated.
        """

    def lag(self) -> int:
        return (first_frames(self.decoder_layers()) - 1) * self.frame_samples

    def stream(self, batch_size: int = 1, mode: str = EXACT) -> DecodeStream:
        check_mode(mode)
        return CausalStream(self, batch_size)

    def streams(self, mode: str = EXACT) -> DecodeStreams:
        return JoinedStreams(self, mode)


class CausalStream(JoinableStream):
    """A decode stream of a causal codec, which decodes frames as they come.

    At the start it waits for the frames that padding by reflection needs.
    """

    rows = ("nothing", "memory", "waiting")

    def __init__(self, codec: CausalCodec, batch_size: int):
        self.codec, self.nothing = codec, next(codec.parameters()).new_zeros(batch_size, 0)
        self.memory: Memory = {}
        self.waiting: Tensor | None = None
        self.missing = codec.lookahead // codec.frame_samples + 1  # frames before the first sample can be given

    def state(self) -> Hashable:
        return bool(self.memory), self.missing, None if self.waiting is None else self.waiting.shape[-1]

    def push(self, codes: Tensor) -> Tensor:
        self.codec.check_codes(codes)
        self.waiting = codes if self.waiting is None else torch.cat([self.waiting, codes], dim=-1)
        return self._decode(at_least=self.missing)

    def finish(self) -> Tensor:
        return self._decode(at_least=1)

    @torch.no_grad()
    def _decode(self, at_least: int) -> Tensor:
        if self.waiting is None or self.waiting.shape[-1] < at_least:
            return self.nothing
        codes, self.waiting, self.missing = self.waiting, None, 1
        return self.codec.decode_next(codes, self.memory)


def run(layers: Iterable[nn.Module], x: Tensor, memory: Memory) -> Tensor:
    """Apply layers of EnCodec or Mimi, one after another, to the next chunk [B, D, n] and return the output
    [B, D', n'].

    Args:
        layers: layers in their order.
        x: chunk of the input.
        memory: state of the layers after the earlier chunks, which is updated.
    """
    for layer in layers:
        x = _step(layer, x, memory)
    return x


def first_frames(layers: Iterable[nn.Module]) -> int:
    """Return the number of frames that a causal decoder needs before its first sample is final.

    A convolution that pads its start by reflection needs one position more than it looks back.
    """
    rate = frames = 1
    for layer in (inner for outer in layers for inner in outer.modules()):
        conv = getattr(layer, "conv", None)
        if isinstance(conv, nn.ConvTranspose1d):
            rate *= conv.stride[0]
        elif isinstance(conv, nn.Conv1d) and layer.pad_mode == "reflect":
            frames = max(frames, math.ceil((_looks_back(conv) + 1) / rate))
    return frames


def _step(layer: nn.Module, x: Tensor, memory: Memory) -> Tensor:
    if hasattr(layer, "shortcut"):
        return _step(layer.shortcut, x, memory) + run(layer.block, x, memory)
    if hasattr(layer, "lstm"):
        before = tuple(tensor.transpose(0, 1).contiguous() for tensor in memory.get(layer, ()))
        y, after = layer.lstm(x.permute(2, 0, 1), before or None)
        memory[layer] = tuple(tensor.transpose(0, 1) for tensor in after)
        return x + y.permute(1, 2, 0)
    conv = getattr(layer, "conv", None)
    if isinstance(conv, nn.ConvTranspose1d):
        return _upsample(layer, x, memory)
    if isinstance(conv, nn.Conv1d):
        return _convolve(layer, x, memory)
    return layer(x)  # an activation or the identity: no state


def _looks_back(conv: nn.Conv1d) -> int:
    return (conv.kernel_size[0] - 1) * conv.dilation[0]


def _convolve(layer: nn.Module, x: Tensor, memory: Memory) -> Tensor:
    back = _looks_back(layer.conv)
    # the start is padded by the layer's own function, as in a whole decoding
    x = torch.cat([memory[layer], x], dim=-1) if layer in memory else layer._pad1d(x, (back, 0), layer.pad_mode)
    memory[layer] = x[..., x.shape[-1] - back :]
    return layer.conv(x)


def _upsample(layer: nn.Module, x: Tensor, memory: Memory) -> Tensor:
    (kernel,), (stride,) = layer.conv.kernel_size, layer.conv.stride
    back = math.ceil(kernel / stride) - 1  # earlier inputs that contribute to the next outputs
    x = torch.cat([memory.get(layer, x.new_zeros(*x.shape[:2], back)), x], dim=-1)
    memory[layer] = x[..., x.shape[-1] - back :]
    return layer.conv(x)[..., back * stride : x.shape[-1] * stride]
