"""Cuts samples that are sorted by length into contiguous micro-batches of nearly equal cost."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np

from omnikit.data.packed_rows import most_steps

_HALVINGS = 18  # of the range in which the cost of the micro-batches is searched


class BatchCutter:
    """Samples in the order of their padded lengths, to be cut into contiguous micro-batches.

    The cost of a micro-batch is its number of steps, padding included, plus the label costs of its samples.

    Args:
        lengths: padded length of each sample in steps [n], ascending.
        label_costs: cost of the labels of each sample [n], in steps.
        max_batch_length: maximum number of steps in a micro-batch, padding included.
        max_sequences: maximum number of samples in a micro-batch; None = no limit.
        packed: whether a row may hold several samples; the padding of a micro-batch is then the most that there may be,
            see `omnikit.data.packed_rows.most_steps`.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        label_costs: np.ndarray,
        max_batch_length: int,
        max_sequences: int | None = None,
        packed: bool = False,
    ):
        self.lengths, self.packed = lengths.tolist(), packed
        self.steps_before = [0, *np.cumsum(lengths).tolist()]
        self.labels_before = np.concatenate([[0.0], np.cumsum(label_costs)]).tolist()
        self.max_batch_length = max_batch_length
        self.max_sequences = len(lengths) if max_sequences is None else max_sequences

    def __len__(self) -> int:
        return len(self.lengths)

    def cost(self, start: int, end: int) -> float:
        """Return the cost in steps of a micro-batch of the samples `start` .. `end` - 1."""
        return self.steps(start, end) + self.labels_before[end] - self.labels_before[start]

    def steps(self, start: int, end: int) -> int:
        """Return the steps of a micro-batch of the samples `start` .. `end` - 1, padding included."""
        samples, longest = end - start, self.lengths[end - 1]
        if not self.packed:
            return samples * longest
        return most_steps(samples, self.steps_before[end] - self.steps_before[start], longest)

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
        lengths, longest = self.lengths, self.max_batch_length

        def too_long(end: int) -> bool:
            return self.steps(start, end) > longest

        def too_costly(end: int) -> bool:
            return self.cost(start, end) > cost

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
