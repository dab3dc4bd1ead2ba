"""Streams that begin and end at different times, decoded together: those in like states are joined into one stream with
a row for each.

Once joined they stay so until others come or some go, because joining copies all that the streams remember.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from omnikit.interfaces import Codec
from omnikit.streaming import EXACT, DecodeStream, DecodeStreams, check_frames, check_mode

Value = TypeVar("Value")


class Joinable:
    """Something that remembers the same of each row of a batch."""

    rows: ClassVar[tuple[str, ...]]
    """Names of the attributes that differ between rows, see `join`; the others are equal in all that are joined."""


class JoinableStream(Joinable, DecodeStream):
    """A stream that can be joined with others."""

    nothing: Tensor
    """No samples [B, 0]."""

    @abstractmethod
    def state(self) -> Hashable:
        """Equal for streams that can be joined: what they remember has the same shapes."""


def join(values: Sequence[Value]) -> Value:
    """Put rows together: tensors [B_i, ...] -> [sum of B_i, ...], also within tuples, dictionaries and `Joinable`.
    Anything else must be equal in all, and is taken from the first."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, tuple):
        return tuple(join(parts) for parts in zip(*values, strict=True))
    if isinstance(first, dict):
        return {key: join([value[key] for value in values]) for key in first}
    return _with_rows(first, [join([getattr(value, name) for value in values]) for name in _rows(first)])


def pick(value: Value, row: int) -> Value:
    """One row of what `join` put together; a view."""
    if isinstance(value, Tensor):
        return value[row : row + 1]
    if isinstance(value, tuple):
        return tuple(pick(part, row) for part in value)
    if isinstance(value, dict):
        return {key: pick(part, row) for key, part in value.items()}
    return _with_rows(value, [pick(getattr(value, name), row) for name in _rows(value)])


def _rows(value: Any) -> tuple[str, ...]:
    return value.rows if isinstance(value, Joinable) else ()


def _with_rows(value: Value, rows: Sequence[Any]) -> Value:
    if not isinstance(value, Joinable):
        return value
    other = copy.copy(value)
    vars(other).update(zip(value.rows, rows, strict=True))
    return other


class JoinedStreams(DecodeStreams):
    """For a codec whose `stream` gives a `JoinableStream`. What streams in like states are given is decoded together
    where it is as many frames."""

    def __init__(self, codec: Codec, mode: str = EXACT):
        check_mode(mode)
        self.codec, self.mode, self.opened = codec, mode, 0
        self.places: dict[int, tuple[JoinableStream, int]] = {}  # of each stream: what it is joined into, and its row

    def open(self) -> int:
        self.opened += 1
        self.places[self.opened] = self.codec.stream(mode=self.mode), 0
        return self.opened

    def push(self, codes: Mapping[int, Tensor]) -> dict[int, Tensor]:
        check_frames(self.codec, codes)
        given = {}
        for numbers in self._alike({number: frames.shape[-1] for number, frames in codes.items()}):
            wavs = self._joined(numbers).push(torch.stack([codes[number] for number in numbers]))
            given.update(zip(numbers, wavs, strict=True))
        return given

    def finish(self, streams: Iterable[int]) -> dict[int, Tensor]:
        given = {}
        for numbers in self._alike(dict.fromkeys(streams, 0)):
            given.update(zip(numbers, self._joined(numbers).finish(), strict=True))
        for number in given:
            self.drop(number)
        return given

    def drop(self, stream: int) -> None:
        del self.places[stream]

    def _alike(self, frames: Mapping[int, int]) -> Iterable[Sequence[int]]:
        """Stream -> frames given to it; the streams that go together."""
        groups = defaultdict(list)
        for number in sorted(frames):
            groups[self.places[number][0].state(), frames[number]].append(number)
        return groups.values()

    def _joined(self, numbers: Sequence[int]) -> JoinableStream:
        places = [self.places[number] for number in numbers]
        stream = places[0][0]
        if places != [(stream, row) for row in range(len(stream.nothing))]:
            stream = join([pick(stream, row) for stream, row in places])
            self.places.update((number, (stream, row)) for row, number in enumerate(numbers))
        return stream
