"""Streaming decoding: codes come frame by frame, audio comes out, exact with a lag or at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
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
        self.codec, self.nothing = codec, torch.zeros(batch_size, 0)

    def push(self, codes: Tensor) -> Tensor:
        wav = self.codec.decode(codes)
        self.nothing = wav[:, :0]
        return wav

    def finish(self) -> Tensor:
        return self.nothing


class DecodeStreams(ABC):
    """Streaming decodings of one codec that begin and end at different times; what is due in all of them is decoded
    together. Each gives the samples that it would give alone. Used by one thread at a time."""

    @abstractmethod
    def open(self) -> int:
        """Begin a stream and return its number."""

    @abstractmethod
    def push(self, codes: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Decode further frames of some streams: number -> codes [K, t], t > 0 and perhaps different in each -> number
        -> the samples that can be given now [n], on the codec's device; n may be 0."""

    @abstractmethod
    def finish(self, streams: Iterable[int]) -> dict[int, Tensor]:
        """End some streams: number -> the samples still due [n]."""

    @abstractmethod
    def drop(self, stream: int) -> None:
        """Forget a stream whose remaining samples nobody wants."""


def check_frames(codec: Codec, codes: Mapping[int, Tensor]) -> None:
    """Refuse a mapping from streams to codes [K, t] if some are no codes of this codec.

    Raises:
        ValueError: the message names the stream.
    """
    try:  # all at once, because on a GPU each question is a wait
        codec.check_codes(torch.cat(list(codes.values()), dim=-1)[None])
    except (ValueError, RuntimeError):  # a RuntimeError where their shapes do not fit each other
        for number, frames in codes.items():
            try:
                codec.check_codes(frames[None])
            except ValueError as error:
                raise ValueError(f"stream {number}: {error}") from None


class SeparateStreams(DecodeStreams):
    """Streams that are decoded one by one, for a codec that cannot decode several together."""

    def __init__(self, codec: Codec, mode: str = EXACT):
        check_mode(mode)
        self.codec, self.mode, self.opened = codec, mode, 0
        self.streams: dict[int, DecodeStream] = {}

    def open(self) -> int:
        self.opened += 1
        self.streams[self.opened] = self.codec.stream(mode=self.mode)
        return self.opened

    def push(self, codes: Mapping[int, Tensor]) -> dict[int, Tensor]:
        check_frames(self.codec, codes)
        return {number: self.streams[number].push(frames[None])[0] for number, frames in codes.items()}

    def finish(self, streams: Iterable[int]) -> dict[int, Tensor]:
        found = {number: self.streams[number].finish()[0] for number in streams}
        for number in found:
            del self.streams[number]
        return found

    def drop(self, stream: int) -> None:
        del self.streams[stream]
