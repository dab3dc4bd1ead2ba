"""Cuts samples that are sorted by length into contiguous micro-batches of nearly equal cost."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np

_HALVINGS = 18  # of the range in which the cost of the micro-batches is searched


class BatchCutter:
    """Samples in the order of their padded lengths, to be cut into contiguous micro-batches.

    The cost of a micro-batch is its number of steps, padding included, plus the label costs of its samples.

    Args:
        lengths: padded length of each sample in steps [n], ascending.
        label_costs: cost of the labels of each sample [n], in steps.
        max_batch_length: maximum number of steps in a micro-batch, padding included.
        max_sequences: maximum number of samples in a micro-batch; None = no limit.
    """

    def __init__(
        self, lengths: np.ndarray, label_costs: np.ndarray, max_batch_length: int, max_sequences: int | None = None
    ):
        self.lengths = lengths.tolist()
        self.labels_before = np.concatenate([[0.0], np.cumsum(label_costs)]).tolist()
        self.max_batch_length = max_batch_length
        self.max_sequences = len(lengths) if max_sequences is None else max_sequences

    def __len__(self) -> int:
        return len(self.lengths)

    def cost(self, start: int, end: int) -> float:
        """Return the cost in steps of a micro-batch of the samples `start` .. `end` - 1."""
        return (end - start) * self.lengths[end - 1] + self.labels_before[end] - self.labels_before[start]

    def cut(self, count: int) -> list[tuple[int, int]] | None:
        """Cut all samples into exactly `count` micro-batches of nearly equal cost.

        Returns:
            First sample and end of each micro-batch; None if so few cannot hold the samples, or if there are fewer
            samples.
        """
        best = self.fill()
        if count > len(self) or len(best) > count:
            return None
        low, high = 0.0, self.max_batch_length + self.labels_before[-1]
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            found = self.fill(middle)
            if len(found) <= count:
                best, high = found, middle
            else:
                low = middle
        return self._split(best, count)

    def fill(self, cost: float = math.inf) -> list[tuple[int, int]]:
        """Cut all samples into micro-batches whose costs are as close to `cost` as `max_batch_length` allows."""
        found, start = [], 0
        while start < len(self):
            end = self._end(start, cost)
            found.append((start, end))
            start = end
        return found

    def _end(self, start: int, cost: float) -> int:
        """Return the end of the micro-batch that begins with a sample; it holds at least that one."""
        lengths, before, longest = self.lengths, self.labels_before, self.max_batch_length

        def too_long(end: int) -> bool:
            return (end - start) * lengths[end - 1] > longest

        def too_costly(end: int) -> bool:
            return (end - start) * lengths[end - 1] + before[end] - before[start] > cost

        most = min(self.max_sequences, longest // lengths[start])  # the other samples are at least as long
        last = min(len(lengths), start + most)
        last = start + 1 + bisect_left(range(start + 2, last + 1), True, key=too_long)
        end = start + 1 + bisect_left(range(start + 2, last + 1), True, key=too_costly)
        # Cut where the cost is closest, not below it: else micro-batches of long samples would all cost less than those
        # of short samples, which can be cut finely, and those that run at the same time would cost differently.
        closer = end < last and self.cost(start, end + 1) - cost < cost - self.cost(start, end)
        return end + closer

    def _split(self, found: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
        """Halve the costliest micro-batches of several samples until there are `count`."""
        while len(found) < count:
            at = max((i for i, (a, b) in enumerate(found) if b - a > 1), key=lambda i: self.cost(*found[i]))
            start, end = found[at]
            middle = (start + end) // 2
            found[at : at + 1] = [(start, middle), (middle, end)]
        return found
