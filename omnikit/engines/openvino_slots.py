"""Slots whose keys and values OpenVINO keeps as the state of an infer request.

Rows are right-aligned: the last column of the state holds the last position of every sequence, so that a decode step
appends one column to all of them. The columns before a sequence's first position are masked.

Letters: R sequences, N prompts, L positions, C columns, D width, G heads of keys and values, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import openvino as ov
import torch
from torch import Tensor

from omnikit.interfaces import Hidden, Prefill, Slots

FORBIDDEN = -1e9
"""Added to the attention scores of columns that must not be attended to."""


@dataclass(frozen=True)
class CompiledTrunk:
    """A compiled graph of all blocks, see `omnikit.engines.openvino_graph.GraphBuilder.trunk`."""

    compiled: ov.CompiledModel
    window: int | None  # positions that a position attends to, itself included; None = all before it


class AlignedSequences:
    """Right-aligned sequences in the state of one infer request."""

    def __init__(self, trunk: CompiledTrunk):
        self.trunk, self.request = trunk, trunk.compiled.create_infer_request()
        self.columns = 0

    def run(self, embeddings: np.ndarray, firsts: np.ndarray, rows: Sequence[int]) -> list[np.ndarray]:
        """Append L columns and return their hidden states [R, L, D], one array per stack of blocks, in memory that the
        next call writes over.

        Args:
            embeddings: [R, L, D].
            firsts: the column of each sequence's position 0 [R]; columns before it are padding.
            rows: the row of the state that each sequence goes on from [R].
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
        """Return keys and values of each block by name, [R, G, C, E] each; to read or to set one copies it."""
        return {state.name: state for state in self.request.query_state()}


@dataclass(frozen=True)
class SequenceLocation:
    """Location of one sequence's keys and values."""

    batch: AlignedSequences
    row: int
    first: int  # column of its position 0
    length: int  # positions that are kept, perhaps not all that the row has

    def is_aligned(self) -> bool:
        """Return whether its last position is in the last column."""
        return self.first + self.length == self.batch.columns


class OpenVINOSlots(Slots):
    """Slots over a compiled trunk.

    Between two decode steps sequences only change their places in a list. The next step then reorders rows by the
    graph's input `rows`, which costs nothing; it rewrites the state, which takes about as long as a decode step, only
    where sequences lie in several batches or were cropped, or where half of the columns are unused.
    """

    def __init__(self, trunk: CompiledTrunk, capacity: int):
        self.trunk, self.capacity = trunk, capacity
        self.batch = AlignedSequences(trunk)
        self.places: list[SequenceLocation] = []

    @property
    def lengths(self) -> list[int]:
        return [place.length for place in self.places]

    def prefill(self, prompts: Sequence[Tensor]) -> OpenVINOPrefill:
        return OpenVINOPrefill(self.trunk, prompts)

    def admit(self, prefill: OpenVINOPrefill) -> None:
        assert not prefill.left, "positions of the prompts are left"
        assert len(self) + len(prefill.firsts) <= self.capacity, "more sequences than there is room for"
        self.places += prefill.places()

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

    def crop(self, slot: int, length: int) -> None:
        assert 0 <= length <= self.places[slot].length, "a sequence cannot be cropped to more than it has"
        self.places[slot] = replace(self.places[slot], length=length)

    def release(self, slot: int) -> None:
        self.places[slot] = self.places[-1]
        self.places.pop()

    def _gather(self) -> None:
        """Bring all sequences into one batch, right-aligned, in fewer than twice the columns that the longest has."""
        batch, columns = self.places[0].batch, max(self.lengths)
        together = all(place.batch is batch and place.is_aligned() for place in self.places)
        if together and batch.columns < 2 * columns:
            self.batch = batch
        else:
            self._rewrite(columns)
            firsts = [columns - length for length in self.lengths]
            self.places = [
                SequenceLocation(self.batch, row, first, columns - first) for row, first in enumerate(firsts)
            ]

    def _rewrite(self, columns: int) -> None:
        """Set the state of the batch to the sequences, right-aligned in so many columns.

        Padding is set to zero: a NaN there would come through the mask, whatever it is multiplied with.
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
                kept = found[place.batch][place.row, :, place.first : place.first + place.length]
                row[:, columns - place.length :] = kept
            state.state = ov.Tensor(joined, shared_memory=True)  # is copied
        self.batch.columns = columns


class OpenVINOPrefill(Prefill):
    """Prefill of several prompts as one left-padded batch, in an infer request of its own."""

    def __init__(self, trunk: CompiledTrunk, prompts: Sequence[Tensor]):
        self.batch, lengths = AlignedSequences(trunk), np.array([len(prompt) for prompt in prompts])
        self.firsts = lengths.max() - lengths
        self.embeddings = np.zeros((len(prompts), lengths.max(), prompts[0].shape[1]), np.float32)
        for row, first, prompt in zip(self.embeddings, self.firsts, prompts, strict=True):
            row[first:] = _array(prompt)

    @property
    def left(self) -> int:
        return int((self.embeddings.shape[1] - np.maximum(self.firsts, self.batch.columns)).sum())

    def advance(self, positions: int) -> None:
        """Compute further columns of the batch; padding counts as positions, since it takes as long."""
        assert self.left, "no positions are left"
        begin, count = self.batch.columns, len(self.embeddings)
        end = begin + max(1, positions // count)
        self.batch.run(np.ascontiguousarray(self.embeddings[:, begin:end]), self.firsts, range(count))

    def places(self) -> list[SequenceLocation]:
        """Return where the sequences lie when nothing is left."""
        firsts = enumerate(self.firsts.tolist())
        return [SequenceLocation(self.batch, row, first, self.batch.columns - first) for row, first in firsts]


def attention_mask(firsts: np.ndarray, begin: int, end: int, window: int | None) -> np.ndarray:
    """Return what is added to the attention scores of the columns from `begin` to `end` [R, 1, end - begin, end].

    It is written out for each row: OpenVINO may broadcast one row's to the others wrongly in bf16. Padding attends to
    itself alone.

    Args:
        firsts: the column of each sequence's position 0 [R].
        window: number of positions that a position attends to, itself included; None = all before it.
    """
    queries, keys = np.arange(begin, end)[:, None], np.arange(end)
    near = (keys <= queries) & (keys > queries - (window or end))
    allowed = near & ((keys >= firsts[:, None, None]) | (keys == queries))
    return np.where(allowed, np.float32(0), np.float32(FORBIDDEN))[:, None]


def _array(embeddings: Tensor) -> np.ndarray:
    return embeddings.detach().float().contiguous().numpy()
