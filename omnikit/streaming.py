"""Streaming decoding: codes come frame by frame, audio comes out, exact with a lag or at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from omnikit.interfaces import Codec

EXACT, LOW_LATENCY = MODES = ("exact", "low_latency")
"""What a stream gives: samples that no further frame changes, or as many as its frames cover."""


def check_mode(mode: str) -> None:
    """Refuse an unknown mode of streaming."""
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: no such mode of streaming (choices: {', '.join(MODES)})")


class DecodeStream(ABC):
    """One streaming decoding of a codec, used as `with codec.stream() as stream: wav = stream.push(codes)`.

    All state lives here and none in the codec, so that several streams can run over one codec.
    """

    @abstractmethod
    def push(self, codes: Tensor) -> Tensor:
        """Codes of further frames [B, K, t] -> the samples that can be given now [B, n]; n may be 0."""

    @abstractmethod
    def finish(self) -> Tensor:
        """No more frames: the samples still due [B, n]."""

    def __enter__(self) -> DecodeStream:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class FramewiseStream(DecodeStream):
    """Streaming for a codec whose frames are decoded each by itself: nothing lags in any mode."""

    def __init__(self, codec: Codec, batch_size: int = 1, mode: str = EXACT):
        check_mode(mode)
        self.codec, self.batch_size = codec, batch_size

    def push(self, codes: Tensor) -> Tensor:
        return self.codec.decode(codes)

    def finish(self) -> Tensor:
        return torch.zeros(self.batch_size, 0)
