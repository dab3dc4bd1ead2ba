"""Streaming decoding of codes to waveforms: frames are pushed as they come, and samples are returned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from omnikit.interfaces import Codec

EXACT, LOW_LATENCY = MODES = ("exact", "low_latency")
"""Names of streaming modes.

`exact` returns samples once no later frame changes them, `low_latency` all samples that the frames cover.
"""


def check_mode(mode: str) -> None:
    """Refuse an unknown streaming mode.

    Raises:
        ValueError: the message lists the choices.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: no such mode of streaming (choices: {', '.join(MODES)})")


class DecodeStream(ABC):
    """Streaming decoding of one batch of code sequences: `with codec.stream() as stream: wav = stream.push(codes)`.

    All state is in this object and none in the codec, so that several streams can run on one codec.
    """

    @abstractmethod
    def push(self, codes: Tensor) -> Tensor:
        """Decode further frames [B, K, t] and return the samples that are available now [B, n]; n may be 0."""

    @abstractmethod
    def finish(self) -> Tensor:
        """End the stream and return the remaining samples [B, n]."""

    def __enter__(self) -> DecodeStream:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class FramewiseStream(DecodeStream):
    """A decode stream for codecs that decode each frame independently, so that samples never lag behind frames."""

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
    """Decode streams of one codec that begin and end at different times, and whose pending frames are decoded together.

    Each returns the samples that it would return alone. Used by one thread at a time.
    """

    @abstractmethod
    def open(self) -> int:
        """Begin a decode stream and return its number."""

    @abstractmethod
    def push(self, codes: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Decode further frames of some decode streams and return the samples that are available now.

        Args:
            codes: number of the stream -> codes [K, t], t > 0, which may differ between streams.

        Returns:
            Number of the stream -> samples [n] on the codec's device; n may be 0.
        """

    @abstractmethod
    def finish(self, streams: Iterable[int]) -> dict[int, Tensor]:
        """End some decode streams and return the remaining samples [n] of each by its number."""

    @abstractmethod
    def drop(self, stream: int) -> None:
        """End a decode stream and discard its remaining samples."""


def check_frames(codec: Codec, codes: Mapping[int, Tensor]) -> None:
    """Refuse a mapping from decode streams to codes [K, t] if some are not codes of this codec.

    Raises:
        ValueError: the message names the stream.
    """
    try:  # all at once, because on a GPU each check waits for the device
        codec.check_codes(torch.cat(list(codes.values()), dim=-1)[None])
    except (ValueError, RuntimeError):  # torch.cat raises RuntimeError for shapes that do not match
        for number, frames in codes.items():
            try:
                codec.check_codes(frames[None])
            except ValueError as error:
                raise ValueError(f"stream {number}: {error}") from None


class SeparateStreams(DecodeStreams):
    """Decode streams that are decoded one by one, for a codec that cannot decode several together."""

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
