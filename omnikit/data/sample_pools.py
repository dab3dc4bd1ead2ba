"""Pools: many drawn samples that are sorted by length together, so that micro-batches of them need little padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omnikit.data.cut_batches import BatchCutter
from omnikit.data.label_cost import LabelCost
from omnikit.data.packed_rows import pack_rows
from omnikit.data.padding import STEPS, rounded
from omnikit.data.sample_draws import SampleDraws

TIES = 1
"""Mark of a pool's seeds among others that start with the run's seed."""


class SamplePools:
    """Pools of drawn samples and the cost of micro-batches of them.

    Args:
        draws: the sequence of samples that is trained on.
        max_batch_length: maximum number of steps in a micro-batch, padding included.
        label_cost: cost of labels.
        packed: whether a row of a batch may hold several samples.

    Raises:
        ValueError: a sample is longer than a micro-batch.
    """

    def __init__(self, draws: SampleDraws, max_batch_length: int, label_cost: LabelCost, packed: bool = False):
        self.draws, self.table = draws, draws.table
        self.max_batch_length, self.label_cost, self.packed = max_batch_length, label_cost, packed
        self.longest = int(self.table.lengths.max())
        self.mean_length = draws.mean(rounded(self.table.lengths, STEPS))
        if rounded(self.longest, STEPS) > max_batch_length:
            raise ValueError(
                f"max_batch_length: {max_batch_length}; the longest sample has {self.longest} steps, "
                f"{rounded(self.longest, STEPS)} with padding"
            )

    def pool(self, number: int, draws: int, max_sequences: int | None = None) -> Pool:
        """Return the pool of a number among pools of `draws` samples.

        Args:
            max_sequences: maximum number of samples in a micro-batch; None = no limit.
        """
        samples = self.draws.between(number * draws, (number + 1) * draws)
        ties = np.random.default_rng([self.draws.seed, TIES, number]).permutation(len(samples))
        return self.sorted(samples[ties], max_sequences)

    def sorted(self, samples: np.ndarray, max_sequences: int | None = None) -> Pool:
        """Return some samples as a pool; those of equal padded length and cost stay in their order."""
        lengths, costs = self.padded_lengths(samples), self.label_costs(samples)
        order = np.lexsort((costs, lengths))
        cutter = BatchCutter(lengths[order], costs[order], self.max_batch_length, max_sequences, self.packed)
        return Pool(samples[order], cutter)

    def costs(self, pieces: Sequence[np.ndarray]) -> np.ndarray:
        """Return the cost in steps of each micro-batch, given the sample indices of each."""
        return np.array([self.steps(piece) + self.label_costs(piece).sum() for piece in pieces])

    def steps(self, samples: np.ndarray) -> int:
        """Return the steps of a micro-batch of samples, padding included."""
        if not self.packed:
            return len(samples) * int(self.padded_lengths(samples).max())
        rows, length = pack_rows(self.table.lengths[samples].tolist(), STEPS)
        return len(rows) * length

    def padded_lengths(self, samples: np.ndarray) -> np.ndarray:
        """Return the lengths of samples in steps, each rounded up to what a batch is padded to."""
        return rounded(self.table.lengths[samples], STEPS)

    def label_costs(self, samples: np.ndarray) -> np.ndarray:
        """Return the cost of each sample's labels in steps."""
        text, audio = self.table.text_labels[samples], self.table.audio_labels[samples]
        return self.label_cost.text * text + self.label_cost.audio * audio

    def labels(self, samples: np.ndarray) -> int:
        """Return the number of labels of samples: those in the text stream plus the positions with audio labels."""
        return int(self.table.text_labels[samples].sum()) + int(self.table.audio_labels[samples].sum())


class Pool:
    """Samples in the order of their padded lengths, to be cut into micro-batches.

    Args:
        samples: indices of the samples [n].
        cutter: cutter with the lengths and costs of the same samples.
    """

    def __init__(self, samples: np.ndarray, cutter: BatchCutter):
        self.samples, self.cutter = samples, cutter

    def cut(self, count: int) -> list[np.ndarray] | None:
        """Return the sample indices of `count` micro-batches of nearly equal cost; None if they cannot hold them."""
        found = self.cutter.cut(count)
        return None if found is None else [self.samples[start:end] for start, end in found]

    def full_batches(self) -> int:
        """Return the number of micro-batches that hold the samples if each is as full as it may be."""
        return len(self.cutter.fill())
