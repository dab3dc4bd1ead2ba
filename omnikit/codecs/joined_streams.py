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
    """State of a batch whose rows can be taken apart and put together with those of others."""

    rows: ClassVar[tuple[str, ...]]
    """Names of the attributes that hold a value per row, see `join`; all others are equal in what is joined."""


class JoinableStream(Joinable, DecodeStream):
    """A stream that can be joined with others."""

    nothing: Tensor
    """No samples [B, 0]."""

    @abstractmethod
    def state(self) -> Hashable:
        """Return what is equal for two streams exactly if they can be joined: all they remember has the same shapes."""


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
    """Return one row of what `join` put together, as views of its tensors."""
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
    """Streams of a codec whose `stream` returns a `JoinableStream`. Those in equal states that are given equally many
    frames are decoded in one call."""

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
        """Group the streams, given how many frames each is to take, into those that can be decoded in one call."""
        groups = defaultdict(list)
        for number in sorted(frames):
            groups[self.places[number][0].state(), frames[number]].append(number)
        return groups.values()

    def _joined(self, numbers: Sequence[int]) -> JoinableStream:
        """Return one stream whose rows are those of the given streams, in this order."""
        places = [self.places[number] for number in numbers]
        stream = places[0][0]
        if places != [(stream, row) for row in range(len(stream.nothing))]:
            stream = join([pick(stream, row) for stream, row in places])
            self.places.update((number, (stream, row)) for row, number in enumerate(numbers))
        return stream
