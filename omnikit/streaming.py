"""Streaming decoding: codes come frame by frame, exact audio comes out with a fixed lag."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor


class DecodeStream(ABC):
    """One streaming decoding of a codec, used as `with codec.stream() as stream: wav = stream.push(codes)`.

    All state lives here and none in the codec, so that several streams can run over one codec.
    """

    @abstractmethod
    def push(self, codes: Tensor) -> Tensor:
        """Codes of further frames [B, K, t] -> the samples that are final now [B, n]; n may be 0."""

    @abstractmethod
    def finish(self) -> Tensor:
        """No more frames: the samples still due [B, n]."""

    def __enter__(self) -> DecodeStream:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class WindowedDecodeStream(DecodeStream):
    """Streaming for a decoder with finite reach: each push decodes the new frames with their neighbours again.

    Args:
        decode: codes [B, K, T] -> waveform [B, T * frame_samples].
        frame_samples: samples per frame.
        reach: samples at a piece's edge that are not yet what the whole decoding gives there.
        batch_size: B.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], *, frame_samples: int, reach: int, batch_size: int = 1):
        self.decode, self.frame_samples, self.reach, self.batch_size = decode, frame_samples, reach, batch_size
        self.codes: Tensor | None = None  # the frames still needed as context
        self.start = 0  # sample at which self.codes begins
        self.done = 0  # samples given out

    def push(self, codes: Tensor) -> Tensor:
        self.codes = codes if self.codes is None else torch.cat([self.codes, codes], dim=-1)
        end = self.start + self.codes.shape[-1] * self.frame_samples
        return self._emit(max(self.done, end - self.reach))

    def finish(self) -> Tensor:
        if self.codes is None:
            return torch.zeros(self.batch_size, 0)
        return self._emit(self.start + self.codes.shape[-1] * self.frame_samples)

    def _emit(self, until: int) -> Tensor:
        if until <= self.done:
            return torch.zeros(self.batch_size, 0)
        wav = self.decode(self.codes)[:, self.done - self.start : until - self.start]
        self.done = until
        drop = max(0, (self.done - self.reach - self.start) // self.frame_samples)
        self.codes, self.start = self.codes[..., drop:], self.start + drop * self.frame_samples
        return wav
