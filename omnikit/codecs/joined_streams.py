"""Streams that begin and end at different times, decoded together: those in like states are joined into one stream with
a row for each.

Once joined they stay so until others come or some go, because joining copies all that the streams remember.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from omnikit.cuda_graphs import CudaGraphs, RecordedFunction
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
    recordable: ClassVar[bool] = False
    """Whether `advance` can be recorded as a CUDA graph: it never waits for the GPU, and there are few states."""

    @abstractmethod
    def state(self) -> Hashable:
        """Return what is equal for two streams exactly if they can be joined: all they remember has the same shapes."""

    def advance(self, codes: Tensor) -> Tensor:
        """Decode further frames as `push` does; their codes [B, K, T] have been checked."""
        return self.push(codes)


def join(values: Sequence[Value]) -> Value:
    """Put rows together: tensors [B_i, ...] -> [sum of B_i, ...], also within tuples, dictionaries and `Joinable`.
    Anything else must be equal in all, and is taken from the first."""
    return _map(torch.cat, values)


def pick(value: Value, row: int) -> Value:
    """Return one row of what `join` put together, as views of its tensors."""
    return _map(lambda tensors: tensors[0][row : row + 1], [value])


def tensors_of(value: Any) -> list[Tensor]:
    """Return all tensors that `join` would put together with others."""
    found: list[Tensor] = []
    _map(lambda tensors: found.append(tensors[0]), [value])
    return found


def with_tensors(value: Value, tensors: Iterable[Tensor]) -> Value:
    """Return a copy of a value with other tensors in place of `tensors_of(value)`."""
    others = iter(tensors)
    return _map(lambda _: next(others), [value])


def _map(function: Callable[[list[Tensor]], Any], values: Sequence[Value]) -> Value:
    """Return the first of some like values with the result of a function in place of each tensor; the function is given
    the tensors that all values have there."""
    first = values[0]
    if isinstance(first, Tensor):
        return function(list(values))
    if isinstance(first, tuple):
        return tuple(_map(function, parts) for parts in zip(*values, strict=True))
    if isinstance(first, dict):
        return {key: _map(function, [value[key] for value in values]) for key in first}
    if not isinstance(first, Joinable):
        return first
    other = copy.copy(first)
    vars(other).update((name, _map(function, [getattr(value, name) for value in values])) for name in first.rows)
    return other


class JoinedStreams(DecodeStreams):
    """Streams of a codec whose `stream` returns a `JoinableStream`. Those in equal states that are given equally many
    frames are decoded in one call."""

    def __init__(self, codec: Codec, mode: str = EXACT):
        check_mode(mode)
        self.codec, self.mode, self.opened = codec, mode, 0
        self.places: dict[int, tuple[JoinableStream, int]] = {}  # of each stream: what it is joined into, and its row
        self.recorded: RecordedFunction | None = None  # on a GPU, from the first push on
        self._after: dict[Hashable, JoinableStream] = {}  # streams as a recorded call leaves them, by its key

    def open(self) -> int:
        self.opened += 1
        self.places[self.opened] = self.codec.stream(mode=self.mode), 0
        return self.opened

    def push(self, codes: Mapping[int, Tensor]) -> dict[int, Tensor]:
        check_frames(self.codec, codes)
        given = {}
        for numbers in self._alike({number: frames.shape[-1] for number, frames in codes.items()}):
            wavs = self._advance(numbers, torch.stack([codes[number] for number in numbers]))
            given.update(zip(numbers, wavs, strict=True))
        return given

    def _advance(self, numbers: Sequence[int], codes: Tensor) -> Tensor:
        """Decode further frames [B, K, T] of streams in equal states; return their samples [B, n]."""
        stream = self._joined(numbers)
        if codes.is_cuda and self.recorded is None and stream.recordable:
            self.recorded = RecordedFunction(CudaGraphs(codes.device))
        key = stream.state(), codes.shape
        if self.recorded is None or not self.recorded.takes(key):
            return stream.advance(codes)

        def compute(codes: Tensor, *tensors: Tensor) -> list[Tensor]:
            after = with_tensors(stream, tensors)
            wav = after.advance(codes)
            self._after.setdefault(key, after)
            return [wav, *tensors_of(after)]

        wav, *tensors = self.recorded(key, compute, [codes, *tensors_of(stream)])
        after = with_tensors(self._after[key], tensors)
        self.places.update((number, (after, row)) for row, number in enumerate(numbers))
        return wav

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
