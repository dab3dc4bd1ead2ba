"""Batched streaming decoding of utterances that begin and end at different times.

Decode streams in equal states are joined into one stream with a batch row for each. They stay joined until streams are
added or removed, because joining copies the state of all of them.
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
    """Base class for the state of a batch whose rows can be separated and joined with those of other batches."""

    rows: ClassVar[tuple[str, ...]]
    """Names of the attributes that hold a value per batch row, see `join`; all other attributes are equal in states
    that are joined."""


class JoinableStream(Joinable, DecodeStream):
    """Base class for a decode stream that can be joined with others into one batch."""

    nothing: Tensor
    """A waveform of no samples [B, 0], where B is the batch size of the stream."""

    @abstractmethod
    def state(self) -> Hashable:
        """Return a key that is equal for two decode streams exactly if they can be joined.

        They can be joined if all tensors of their states have the same shapes.
        """


def join(values: Sequence[Value]) -> Value:
    """Concatenate the batch rows of several states: tensors [B_i, ...] -> [sum of B_i, ...].

    This includes the tensors within tuples, dictionaries and `Joinable` objects. Values of any other type must be equal
    in all states; the first one is returned.
    """
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, tuple):
        return tuple(join(parts) for parts in zip(*values, strict=True))
    if isinstance(first, dict):
        return {key: join([value[key] for value in values]) for key in first}
    return _with_rows(first, [join([getattr(value, name) for value in values]) for name in _rows(first)])


def pick(value: Value, row: int) -> Value:
    """Return one batch row of a state that `join` returned, as views of its tensors."""
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
    """Streaming decodings of one codec whose `stream` returns a `JoinableStream`.

    Streams in equal states that get the same number of frames are decoded in one batch.
    """

    def __init__(self, codec: Codec, mode: str = EXACT):
        check_mode(mode)
        self.codec, self.mode, self.opened = codec, mode, 0
        self.places: dict[int, tuple[JoinableStream, int]] = {}  # stream -> the joined stream and its batch row there

    def open(self) -> int:
        self.opened += 1
        self.places[self.opened] = self.codec.stream(mode=self.mode), 0
        return self.opened

    def push(self, codes: Mapping[int, Tensor]) -> dict[int, Tensor]:
        check_frames(self.codec, codes)
        given = {}
        for numbers in self._groups({number: frames.shape[-1] for number, frames in codes.items()}):
            wavs = self._joined(numbers).push(torch.stack([codes[number] for number in numbers]))
            given.update(zip(numbers, wavs, strict=True))
        return given

    def finish(self, streams: Iterable[int]) -> dict[int, Tensor]:
        given = {}
        for numbers in self._groups(dict.fromkeys(streams, 0)):
            given.update(zip(numbers, self._joined(numbers).finish(), strict=True))
        for number in given:
            self.drop(number)
        return given

    def drop(self, stream: int) -> None:
        del self.places[stream]

    def _groups(self, frames: Mapping[int, int]) -> Iterable[Sequence[int]]:
        """Group streams that can be decoded in one batch, given the number of frames that each of them gets."""
        groups = defaultdict(list)
        for number in sorted(frames):
            groups[self.places[number][0].state(), frames[number]].append(number)
        return groups.values()

    def _joined(self, numbers: Sequence[int]) -> JoinableStream:
        """Return one decode stream whose batch rows are the streams of the given numbers, in this order."""
        places = [self.places[number] for number in numbers]
        stream = places[0][0]
        if places != [(stream, row) for row in range(len(stream.nothing))]:
            stream = join([pick(stream, row) for stream, row in places])
            self.places.update((number, (stream, row)) for row, number in enumerate(numbers))
        return stream
