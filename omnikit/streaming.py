"""Streaming decoding: codes come frame by frame, exact audio comes out with a fixed lag."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from omnikit.interfaces import Codec


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
        codec: whose codes and frames these are.
        decode: codes [B, K, T] and the sample of the whole at which they begin -> waveform [B, T * frame_samples].
        reach: samples at a piece's edge that are not yet what the whole decoding gives there.
        align: a piece begins and ends at a multiple of so many frames, but for the last.
        batch_size: B.
    """

    def __init__(
        self,
        codec: Codec,
        decode: Callable[[Tensor, int], Tensor],
        *,
        reach: int,
        align: int = 1,
        batch_size: int = 1,
    ):
        self.decode, self.check_codes, self.batch_size = decode, codec.check_codes, batch_size
        self.frame_samples, self.reach, self.align = codec.frame_samples, reach, align
        self.codes: Tensor | None = None  # the frames still needed as context
        self.start = 0  # sample at which self.codes begins
        self.done = 0  # samples given out

    def push(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        self.codes = codes if self.codes is None else torch.cat([self.codes, codes], dim=-1)
        frames = self.codes.shape[-1] // self.align * self.align
        return self._emit(frames, self.start + frames * self.frame_samples - self.reach)

    def finish(self) -> Tensor:
        if self.codes is None:
            return torch.zeros(self.batch_size, 0)
        frames = self.codes.shape[-1]
        return self._emit(frames, self.start + frames * self.frame_samples)

    def _emit(self, frames: int, until: int) -> Tensor:
        """The samples before `until` that were not given yet, from the first `frames` of the kept frames."""
        if until <= self.done:
            return torch.zeros(self.batch_size, 0, device=self.codes.device)
        wav = self.decode(self.codes[..., :frames], self.start)[:, self.done - self.start : until - self.start]
        self.done = until
        piece = self.align * self.frame_samples
        drop = max(0, (self.done - self.reach - self.start) // piece) * self.align
        self.codes, self.start = self.codes[..., drop:], self.start + drop * self.frame_samples
        return wav
