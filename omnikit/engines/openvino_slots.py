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
class Trunk:
    """A compiled graph of all blocks, see `omnikit.engines.openvino_graph.GraphBuilder.trunk`."""

    compiled: ov.CompiledModel
    window: int | None  # positions that a position attends to, itself included; None = all before it


@dataclass(frozen=True)
class Place:
    """Location of one sequence's keys and values."""

    batch: Batch
    row: int
    first: int  # column of its position 0
    length: int  # positions that are kept


class Batch:
    """Right-aligned sequences in the state of one infer request."""

    def __init__(self, trunk: Trunk):
        self.trunk, self.request = trunk, trunk.compiled.create_infer_request()
        self.columns = 0
        self.rows: list[int] = []  # of each sequence, its row in the state
        self.lengths: list[int] = []  # of each sequence, its positions

    def run(self, embeddings: np.ndarray, firsts: np.ndarray) -> list[np.ndarray]:
        """Append L columns and return their hidden states [R, L, D], one array per stack of blocks, in memory that the
        next call writes over.

        Args:
            embeddings: [R, L, D].
            firsts: the column of each sequence's position 0 [R]; columns before it are padding.
        """
        count, end = len(embeddings), self.columns + embeddings.shape[1]
        inputs = {
            "x": embeddings,
            "positions": np.maximum(np.arange(self.columns, end) - firsts[:, None], 0),
            "mask": attention_mask(firsts, self.columns, end, self.trunk.window),
            "rows": np.array(self.rows, np.int32),
        }
        found = self.request.infer(inputs, share_inputs=True, share_outputs=True)
        self.columns, self.rows = end, list(range(count))
        return list(found.values())

    def places(self) -> list[Place]:
        """Return the location of each sequence."""
        return [Place(self, row, self.columns - n, n) for row, n in zip(self.rows, self.lengths, strict=True)]

    def arrange(self, places: Sequence[Place]) -> None:
        """Rewrite the state to hold these sequences, from this batch and others, in as many columns as the longest has.

        Padding is set to zero: a NaN there would come through the mask, whatever it is multiplied with.
        """
        lengths = [place.length for place in places]
        columns = max(lengths, default=0)
        if columns:
            others = {place.batch: _by_name(place.batch) for place in places}
            joined = np.empty(0)
            for state in self.request.query_state():
                sources = {batch: states[state.name].state.data for batch, states in others.items()}
                _, groups, _, width = next(iter(sources.values())).shape
                shape = len(places), groups, columns, width
                if joined.shape != shape:
                    joined = np.zeros(shape, np.float32)
                for row, place in zip(joined, places, strict=True):
                    kept = sources[place.batch][place.row, :, place.first : place.first + place.length]
                    row[:, columns - place.length :] = kept
                state.state = ov.Tensor(joined, shared_memory=True)  # is copied
        else:
            self.request.reset_state()
        self.columns, self.rows, self.lengths = columns, list(range(len(places))), lengths


class OpenVINOSlots(Slots):
    """Slots over a compiled trunk.

    Sequences are released, copied and moved by the graph's input `rows` at the next decode step. Only `admit`, `crop`
    and the removal of unused columns rewrite the state, each of which takes about as long as a decode step.
    """

    def __init__(self, trunk: Trunk, capacity: int):
        self.trunk, self.capacity = trunk, capacity
        self.batch = Batch(trunk)

    @property
    def lengths(self) -> list[int]:
        return self.batch.lengths

    def prefill(self, prompts: Sequence[Tensor]) -> OpenVINOPrefill:
        return OpenVINOPrefill(self.trunk, prompts)

    def admit(self, prefill: OpenVINOPrefill) -> None:
        new = prefill.batch
        assert not prefill.left, "positions of the prompts are left"
        assert len(self) + len(new.lengths) <= self.capacity, "more sequences than there is room for"
        if self.lengths:
            self.batch.arrange([*self.batch.places(), *new.places()])
        else:
            self.batch = new

    def advance(self, embeddings: Tensor) -> Hidden:
        batch = self.batch
        if batch.columns >= 2 * max(batch.lengths):  # half of them are padding in every row
            batch.arrange(batch.places())
        found = batch.run(_array(embeddings)[:, None], batch.columns - np.array(batch.lengths))
        batch.lengths = [length + 1 for length in batch.lengths]
        hidden = [torch.from_numpy(array[:, 0].copy()) for array in found]
        return Hidden(hidden[0], hidden[-1])

    def copy(self, slot: int) -> None:
        assert len(self) < self.capacity, "more sequences than there is room for"
        for each in (self.batch.rows, self.batch.lengths):
            each.append(each[slot])

    def crop(self, slot: int, length: int) -> None:
        places = self.batch.places()
        assert 0 <= length <= places[slot].length, "a sequence cannot be cropped to more than it has"
        places[slot] = replace(places[slot], length=length)
        self.batch.arrange(places)

    def release(self, slot: int) -> None:
        for each in (self.batch.rows, self.batch.lengths):
            each[slot] = each[-1]
            each.pop()
        if not self.lengths:
            self.batch.arrange([])


class OpenVINOPrefill(Prefill):
    """Prompts in one left-padded batch, in an infer request of their own."""

    def __init__(self, trunk: Trunk, prompts: Sequence[Tensor]):
        self.batch = Batch(trunk)
        self.batch.lengths = [len(prompt) for prompt in prompts]
        self.batch.rows = list(range(len(prompts)))
        self.firsts = max(self.batch.lengths) - np.array(self.batch.lengths)
        shape = len(prompts), max(self.batch.lengths), prompts[0].shape[1]
        self.embeddings = np.zeros(shape, np.float32)
        for row, first, prompt in zip(self.embeddings, self.firsts, prompts, strict=True):
            row[first:] = _array(prompt)

    @property
    def left(self) -> int:
        end = self.embeddings.shape[1]
        return int((end - np.maximum(self.firsts, self.batch.columns)).sum())

    def advance(self, positions: int) -> None:
        """Compute further columns of the batch; padding counts as positions, since it takes as long."""
        assert self.left, "no positions are left"
        begin = self.batch.columns
        end = begin + max(1, positions // len(self.embeddings))
        self.batch.run(np.ascontiguousarray(self.embeddings[:, begin:end]), self.firsts)


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


def _by_name(batch: Batch) -> dict[str, ov.VariableState]:
    return {state.name: state for state in batch.request.query_state()}


def _array(embeddings: Tensor) -> np.ndarray:
    return embeddings.detach().float().contiguous().numpy()
