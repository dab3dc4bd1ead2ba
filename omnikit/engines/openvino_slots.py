"""Slots whose keys and values are the state of an OpenVINO infer request.

Sequences are right-aligned: the last column of the state holds the last position of every sequence, so that a decode
step appends one column to all of them. The columns before a sequence's first position are masked.

Letters: R sequences, N prompts, L positions, C columns, D width, G heads of keys and values, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import openvino as ov
import torch
from torch import Tensor

from omnikit.engines.continued import begin_in_parts, parts_of
from omnikit.interfaces import Hidden, Parked, Prefill, Slots

FORBIDDEN = -1e9
"""Number added to the attention scores of masked columns."""


@dataclass(frozen=True)
class CompiledTrunk:
    """The OpenVINO graph of all blocks, compiled, see `omnikit.engines.openvino_graph.GraphBuilder.trunk`."""

    compiled: ov.CompiledModel
    window: int | None  # number of positions that a position attends to, itself included; None = all before it


class AlignedSequences:
    """A batch of right-aligned sequences in the state of one infer request."""

    def __init__(self, trunk: CompiledTrunk):
        self.trunk, self.request = trunk, trunk.compiled.create_infer_request()
        self.columns = 0

    def run(self, embeddings: np.ndarray, firsts: np.ndarray, rows: Sequence[int]) -> list[np.ndarray]:
        """Compute L further columns of all sequences; return their hidden states [R, L, D], an array for each trunk.

        The next call overwrites the arrays.

        Args:
            embeddings: embeddings of the new positions [R, L, D].
            firsts: column of each sequence's position 0 [R]; columns before it are padding.
            rows: row of the state that each sequence continues [R].
        """
        end = self.columns + embeddings.shape[1]
        inputs = {
            "x": embeddings,
            "positions": np.maximum(np.arange(self.columns, end) - firsts[:, None], 0),
            "mask": attention_mask(firsts, self.columns, end, self.trunk.window),
            "rows": np.array(rows, np.int32),
        }
        found = self.request.infer(inputs, share_inputs=True, share_outputs=True)
        self.columns = end
        return list(found.values())

    def states(self) -> dict[str, ov.VariableState]:
        """Return the keys and values of each block by name, [R, G, C, E] each; reading or setting one copies it."""
        return {state.name: state for state in self.request.query_state()}

    def set_states(self, states: dict[str, np.ndarray], columns: int) -> None:
        """Set the keys and values of each block by name [R, G, C, E] in place of those of all sequences."""
        for name, state in self.states().items():
            state.state = ov.Tensor(np.ascontiguousarray(states[name]))  # the assignment copies it
        self.columns = columns


@dataclass(frozen=True)
class SequenceLocation:
    """The location of one sequence's keys and values: a batch, a row of its state, and columns."""

    batch: AlignedSequences
    row: int
    first: int  # column of position 0
    length: int  # number of positions, the last of which is in the state's last column


class OpenVINOParked(Parked):
    """A parked sequence as keys and values of each block by the name of its state [G, L, E]."""

    def __init__(self, states: dict[str, np.ndarray]):
        self.states = states

    @property
    def length(self) -> int:
        return next(iter(self.states.values())).shape[1]

    def crop(self, length: int) -> None:
        assert 0 < length <= self.length, "a sequence cannot be cropped to more than it has"
        self.states = {name: state[:, :length] for name, state in self.states.items()}


class OpenVINOSlots(Slots):
    """Slots whose hidden states a compiled OpenVINO graph of all blocks computes.

    Between two decode steps sequences only change their places in a list. The next step then reorders rows by the
    graph's input `rows`, which costs nothing. It rewrites the state, which takes about as long as a decode step, only
    if sequences lie in several batches, or if half of the columns are unused.
    """

    def __init__(self, trunk: CompiledTrunk, capacity: int):
        self.trunk, self.capacity = trunk, capacity
        self.batch = AlignedSequences(trunk)
        self.places: list[SequenceLocation] = []

    @property
    def lengths(self) -> list[int]:
        return [place.length for place in self.places]

    def prefill(self, prompts: Sequence[Tensor], after: Sequence[OpenVINOParked | None] | None = None) -> Prefill:
        return begin_in_parts(prompts, after, lambda some, before: OpenVINOPrefill(self.trunk, some, before))

    def admit(self, prefill: Prefill) -> None:
        assert not prefill.left, "positions of the prompts are left"
        for part in parts_of(prefill):
            assert len(self) + len(part.firsts) <= self.capacity, "more sequences than there is room for"
            self.places += part.places()

    def advance(self, embeddings: Tensor) -> Hidden:
        self._gather()
        firsts, rows = [place.first for place in self.places], [place.row for place in self.places]
        found = self.batch.run(_array(embeddings)[:, None], np.array(firsts), rows)
        self.places = [replace(place, row=row, length=place.length + 1) for row, place in enumerate(self.places)]
        hidden = [torch.from_numpy(array[:, 0].copy()) for array in found]
        return Hidden(hidden[0], hidden[-1])

    def copy(self, slot: int) -> None:
        assert len(self) < self.capacity, "more sequences than there is room for"
        self.places.append(self.places[slot])

    def release(self, slot: int) -> None:
        self.places[slot] = self.places[-1]
        self.places.pop()

    def park(self, slot: int) -> OpenVINOParked:
        place = self.places[slot]
        found = {name: state.state.data for name, state in place.batch.states().items()}
        columns = slice(place.first, place.first + place.length)
        parked = OpenVINOParked({name: data[place.row, :, columns].copy() for name, data in found.items()})
        self.release(slot)
        return parked

    def _gather(self) -> None:
        """Bring all sequences into one right-aligned batch with fewer than twice the columns of the longest one."""
        batch, columns = self.places[0].batch, max(self.lengths)
        together = all(place.batch is batch for place in self.places)
        if together and batch.columns < 2 * columns:
            self.batch = batch
        else:
            self._rewrite(columns)
            firsts = [columns - length for length in self.lengths]
            self.places = [
                SequenceLocation(self.batch, row, first, columns - first) for row, first in enumerate(firsts)
            ]

    def _rewrite(self, columns: int) -> None:
        """Write the keys and values of all sequences to the state of one batch, right-aligned in `columns` columns.

        Padding is set to zero: the mask would not hide a NaN there, which stays NaN in any product.
        """
        sources = {place.batch: place.batch.states() for place in self.places}
        joined = np.empty(0)
        for name, state in self.batch.states().items():
            found = {batch: states[name].state.data for batch, states in sources.items()}
            _, groups, _, width = found[self.places[0].batch].shape
            shape = len(self.places), groups, columns, width
            if joined.shape != shape:
                joined = np.zeros(shape, np.float32)
            for row, place in zip(joined, self.places, strict=True):
                cached = found[place.batch][place.row, :, place.first : place.first + place.length]
                row[:, columns - place.length :] = cached
            state.state = ov.Tensor(joined, shared_memory=True)  # the assignment copies it
        self.batch.columns = columns


class OpenVINOPrefill(Prefill):
    """Prefill of several prompts as one left-padded batch, in an infer request of its own.

    A prompt that continues a parked sequence is alone in its batch, whose state is set to that of the sequence.
    """

    def __init__(self, trunk: CompiledTrunk, prompts: Sequence[Tensor], after: OpenVINOParked | None = None):
        assert after is None or len(prompts) == 1, "a sequence is continued alone"
        self.batch, lengths = AlignedSequences(trunk), np.array([len(prompt) for prompt in prompts])
        self.before = 0 if after is None else after.length
        self.firsts = lengths.max() - lengths
        self.embeddings = np.zeros((len(prompts), lengths.max(), prompts[0].shape[1]), np.float32)
        for row, first, prompt in zip(self.embeddings, self.firsts, prompts, strict=True):
            row[first:] = _array(prompt)
        if after is not None:
            self.batch.set_states({name: state[None] for name, state in after.states.items()}, after.length)

    @property
    def left(self) -> int:
        done = self.batch.columns - self.before
        return int((self.embeddings.shape[1] - np.maximum(self.firsts, done)).sum())

    def advance(self, positions: int) -> None:
        """Compute further columns of the batch of prompts, see `Prefill.advance`; padding counts like positions."""
        assert self.left, "no positions are left"
        begin, count = self.batch.columns - self.before, len(self.embeddings)
        end = begin + max(1, positions // count)
        self.batch.run(np.ascontiguousarray(self.embeddings[:, begin:end]), self.firsts, range(count))

    def places(self) -> list[SequenceLocation]:
        """Return the locations of the prefilled sequences' keys and values."""
        firsts = enumerate(self.firsts.tolist())
        return [SequenceLocation(self.batch, row, first, self.batch.columns - first) for row, first in firsts]


def attention_mask(firsts: np.ndarray, begin: int, end: int, window: int | None) -> np.ndarray:
    """Return the numbers to add to the attention scores of columns `begin` to `end` [R, 1, end - begin, end].

    The mask has a row for each sequence, because OpenVINO may broadcast a single row wrongly in bf16. Padding attends
    to itself alone.

    Args:
        firsts: column of each sequence's position 0 [R].
        begin: first new column.
        end: number of columns, the new ones included.
        window: number of positions that a position attends to, itself included; None = all before it.
    """
    queries, keys = np.arange(begin, end)[:, None], np.arange(end)
    near = (keys <= queries) & (keys > queries - (window or end))
    allowed = near & ((keys >= firsts[:, None, None]) | (keys == queries))
    return np.where(allowed, np.float32(0), np.float32(FORBIDDEN))[:, None]


def _array(embeddings: Tensor) -> np.ndarray:
    return embeddings.detach().float().contiguous().numpy()
