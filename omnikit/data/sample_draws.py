"""The sequence of samples that a run draws: shares of tasks and sources, and a permutation per source and task.

A draw is a function of the seed and its number alone, so that a resumed run goes on without iterating over what it has
drawn before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from omnikit.data.sample_table import SampleTable
from omnikit.tasks import TASK_NAMES

_PERMUTATION = 0  # marks these seeds among others that start with the run's seed


@dataclass
class DrawCell:
    """The samples of one source and one task, which are drawn in passes: each sample once per pass."""

    source: int
    task: int
    samples: np.ndarray  # [samples of the cell] indices in the table, int32
    share: float  # of all draws
    passes: dict[int, np.ndarray] = field(default_factory=dict)  # the current pass and the next one

    def __len__(self) -> int:
        return len(self.samples)


class SampleDraws:
    """An endless sequence of sample indices in which each task has its share.

    The share of a task depends on its weight alone and is met exactly: it is apportioned, not drawn by chance. Within a
    task, sources are drawn in proportion to their number of samples times their weight. The samples of a source and a
    task come in a random order, each once before any comes twice.

    Args:
        table: all samples; its columns may be memory-mapped.
        tasks: weight of each task.
        source_weights: weight of each source by its number in the table; None = all 1.
        seed: seed of the permutations.

    Raises:
        ValueError: a task has no samples.
    """

    def __init__(
        self,
        table: SampleTable,
        tasks: Mapping[str, float],
        *,
        source_weights: Sequence[float] | None = None,
        seed: int = 0,
    ):
        self.table, self.seed = table, seed
        shares = {TASK_NAMES.index(task): weight for task, weight in tasks.items() if weight > 0}
        keys = np.asarray(table.sources, dtype=np.int32) * len(TASK_NAMES) + table.tasks
        present = np.flatnonzero(np.bincount(keys)).tolist()
        self._refuse_missing(shares, {key % len(TASK_NAMES) for key in present})
        self.cells: list[DrawCell] = []
        self._task_shares = _nested_shares(list(shares.values()))
        self._source_shares: list[list[float]] = []
        for task, weight in shares.items():
            cells = [
                DrawCell(key // len(TASK_NAMES), task, np.flatnonzero(keys == key).astype(np.int32), 0.0)
                for key in present
                if key % len(TASK_NAMES) == task
            ]
            weights = [len(cell) * (1.0 if source_weights is None else source_weights[cell.source]) for cell in cells]
            for cell, own in zip(cells, weights, strict=True):
                cell.share = weight / sum(shares.values()) * own / sum(weights)
            self._source_shares.append(_nested_shares(weights))
            self.cells += cells

    @staticmethod
    def _refuse_missing(wanted: Mapping[int, float], served: set[int]) -> None:
        for task in wanted:
            if task not in served:
                names = ", ".join(sorted(TASK_NAMES[other] for other in served))
                raise ValueError(f"tasks: no sample of the data serves {TASK_NAMES[task]}; it serves {names}")

    def counts(self, draws: int) -> list[int]:
        """Return how many of the first `draws` draws are of each cell."""
        of_tasks = _apportion(draws, self._task_shares)
        pairs = zip(of_tasks, self._source_shares, strict=True)
        return [count for drawn, shares in pairs for count in _apportion(drawn, shares)]

    def between(self, start: int, stop: int) -> np.ndarray:
        """Return the sample indices of draws `start` .. `stop` - 1, grouped by source and task."""
        found = [np.zeros(0, np.int32)]
        for cell, first, last in zip(self.cells, self.counts(start), self.counts(stop), strict=True):
            found += self._of_cell(cell, first, last)
        return np.concatenate(found)

    def mean(self, column: np.ndarray) -> float:
        """Return the expected value of a column of the table [samples] for one draw."""
        return float(sum(cell.share * np.asarray(column[cell.samples]).mean() for cell in self.cells))

    @property
    def without_repetition(self) -> int:
        """Number of consecutive draws, at least 1, of which hardly any are of the same sample."""
        return max(1, int(min(len(cell) / cell.share for cell in self.cells)))

    def _of_cell(self, cell: DrawCell, first: int, last: int) -> Iterator[np.ndarray]:
        while first < last:
            number, at = divmod(first, len(cell))
            part = self._pass(cell, number)[at : at + last - first]
            yield part
            first += len(part)

    def _pass(self, cell: DrawCell, number: int) -> np.ndarray:
        """Return all samples of a cell in the order of a pass."""
        if number not in cell.passes:
            cell.passes = {other: order for other, order in cell.passes.items() if abs(other - number) == 1}
            rng = np.random.default_rng([self.seed, _PERMUTATION, cell.source, cell.task, number])
            cell.passes[number] = rng.permutation(cell.samples)
        return cell.passes[number]


def _nested_shares(weights: Sequence[float]) -> list[float]:
    """Return the share of each weight in the sum of itself and those after it; the last one's is 1."""
    return [weight / sum(weights[i:]) for i, weight in enumerate(weights)]


def _apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Distribute a number of draws by shares from `_nested_shares`.

    As each takes its part of what the ones before it have left, rounded down, no count falls when the total grows.
    """
    counts = []
    for share in shares:
        counts.append(int(total * share))
        total -= counts[-1]
    return counts
