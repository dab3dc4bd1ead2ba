"""Batched streaming decoding of utterances that begin and end at different times.

Decode streams in equal states are joined into one stream with a batch row for each. They stay joined until streams are
added or removed, because joining copies the state of all of them.
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
    """Base class for the state of a batch of decode streams that can be split by rows and joined with other batches."""

    rows: ClassVar[tuple[str, ...]]
    """Names of the attributes that hold a value per batch row, see `join`; all other attributes are equal in states
    that are joined."""


class JoinableStream(Joinable, DecodeStream):
    """Base class for a decode stream that can be joined with others into one batch."""

    nothing: Tensor
    """A waveform of no samples [B, 0], where B is the batch size of the stream."""
    recordable: ClassVar[bool] = False
    """Whether `advance` can be captured as a CUDA graph: it never waits for the GPU, and few distinct states occur."""

    @abstractmethod
    def state(self) -> Hashable:
        """Return a key that is equal for two decode streams exactly if they can be joined.

        They can be joined if all tensors of their states have the same shapes.
        """

    def advance(self, codes: Tensor) -> Tensor:
        """Decode further codes [B, K, T] like `push`, but without checking that they are inside the codebook."""
        return self.push(codes)


def join(values: Sequence[Value]) -> Value:
    """Concatenate the batch rows of several streaming states: tensors [B_i, ...] -> [sum of B_i, ...].

    This includes the tensors within tuples, dictionaries and `Joinable` objects. Values of any other type must be equal
    in all states; the first one is returned.
    """
    return _map(torch.cat, values)


def select_row(value: Value, row: int) -> Value:
    """Return one batch row of a streaming state that `join` returned, as views of its tensors."""
    return _map(lambda tensors: tensors[0][row : row + 1], [value])


def tensors_of(value: Any) -> list[Tensor]:
    """Return all tensors of a streaming state that `join` would concatenate with those of other states."""
    found: list[Tensor] = []
    _map(lambda tensors: found.append(tensors[0]), [value])
    return found


def with_tensors(value: Value, tensors: Iterable[Tensor]) -> Value:
    """Return a copy of a streaming state in which the tensors that `tensors_of` returns are replaced with others."""
    others = iter(tensors)
    return _map(lambda _: next(others), [value])


def _map(function: Callable[[list[Tensor]], Any], values: Sequence[Value]) -> Value:
    """Return a copy of the first of several streaming states of equal structure, with each of its tensors replaced.

    The replacement is the result of a function of the list of tensors that the states have at this place.
    """
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
    """Concurrent streaming decodings of several utterances by a codec whose `stream` returns a `JoinableStream`.

    Streams in equal states that get the same number of frames are decoded in one batch.
    """

    def __init__(self, codec: Codec, mode: str = EXACT):
        check_mode(mode)
        self.codec, self.mode, self.opened = codec, mode, 0
        self.places: dict[int, tuple[JoinableStream, int]] = {}  # stream -> the joined stream and its batch row there
        self.recorded: RecordedFunction | None = None  # set at the first push on a GPU
        self._after: dict[Hashable, JoinableStream] = {}  # key of a recorded call -> the stream in the state after it

    def open(self) -> int:
        self.opened += 1
        self.places[self.opened] = self.codec.stream(mode=self.mode), 0
        return self.opened

    def push(self, codes: Mapping[int, Tensor]) -> dict[int, Tensor]:
        check_frames(self.codec, codes)
        given = {}
        for numbers in self._groups({number: frames.shape[-1] for number, frames in codes.items()}):
            wavs = self._advance(numbers, torch.stack([codes[number] for number in numbers]))
            given.update(zip(numbers, wavs, strict=True))
        return given

    def _advance(self, numbers: Sequence[int], codes: Tensor) -> Tensor:
        """Decode further codes [B, K, T] of B streams in equal states and return their samples [B, n]."""
        stream = self._joined(numbers)
        if codes.is_cuda and self.recorded is None and stream.recordable:
            self.recorded = RecordedFunction(CudaGraphs(codes.device))
        if self.recorded is None:
            return stream.advance(codes)
        key = stream.state(), codes.shape
        if not self.recorded.takes(key):
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
            stream = join([select_row(stream, row) for stream, row in places])
            self.places.update((number, (stream, row)) for row, number in enumerate(numbers))
        return stream
