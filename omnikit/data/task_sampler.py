"""A batch sampler that mixes tasks by weight and batches samples of similar length."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from omnikit.data.collate import STEPS, rounded

_POOL = 24  # batches whose samples are sorted by length together
_MANY = 4 * _POOL


class TaskSampler(Sampler[list[int]]):
    """A sampler of batches (lists of sample indices) that draws tasks by weight; an epoch is a number of batches.

    The share of a task in the batches depends on its weight and not on its number of samples. Its samples are drawn at
    random, without repetition among the batches that are sorted together if there are enough. The batches of an epoch
    are a function of the seed and the epoch's number, so that a resumed run gets the same ones.

    Args:
        tasks: task of each sample.
        lengths: number of steps of each sample.
        weights: relative frequency of each task.
        max_batch_length: maximum number of steps in a batch, padding included.
        batches: batches per epoch, over all processes (SpeechBrain distributes them); may be set later.

    Raises:
        ValueError: a task has no samples, or a sample is longer than a batch.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        lengths: Sequence[int],
        *,
        weights: dict[str, float],
        max_batch_length: int,
        batches: int = 1,
        seed: int = 0,
    ):
        tasks, lengths = np.asarray(tasks), np.asarray(lengths)
        self.weights = {task: weight for task, weight in weights.items() if weight > 0}
        self.of_task = {task: np.flatnonzero(tasks == task) for task in self.weights}
        for task, samples in self.of_task.items():
            if not len(samples):
                served = ", ".join(sorted(set(tasks.tolist())))
                raise ValueError(f"tasks: no sample of the data serves {task}; it serves {served}")
        if lengths.max() > max_batch_length:
            raise ValueError(f"max_batch_length: {max_batch_length}; the longest sample has {lengths.max()} steps")
        self.lengths = rounded(lengths, STEPS)
        self.max_batch_length, self.batches, self.seed = max_batch_length, batches, seed
        self.epoch = 1
        mean = int(self.lengths.sum()) / len(self.lengths)
        self.samples_per_pool = max(1, int(_POOL * max_batch_length / mean))

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch whose batches the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(self._endless(), self.batches)

    def sequences_per_batch(self) -> float:
        """Return the mean number of samples in a batch, measured over the first batches of the current epoch."""
        return sum(map(len, itertools.islice(self._endless(), _MANY))) / _MANY

    def cover(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return batches that contain each of the samples with the given lengths in steps once, for validation."""
        lengths = rounded(np.asarray(lengths), STEPS)
        return self._cut_by(sorted(range(len(lengths)), key=lengths.__getitem__), lengths)

    def _endless(self) -> Iterator[list[int]]:
        pool_number = 0
        while True:
            rng = random.Random(f"{self.seed} {self.epoch} {pool_number}")
            drawn = rng.choices(list(self.weights), list(self.weights.values()), k=self.samples_per_pool)
            pool = [i for task in self.weights for i in self._some(task, drawn.count(task), rng)]
            batches = self._cut_by(sorted(pool, key=lambda i: (self.lengths[i], rng.random())), self.lengths)
            rng.shuffle(batches)
            yield from batches
            pool_number += 1

    def _some(self, task: str, count: int, rng: random.Random) -> list[int]:
        """Return the indices of `count` samples of a task: all samples as often as they fit, then a random subset."""
        samples = self.of_task[task]
        whole, rest = divmod(count, len(samples))
        rounds = samples.tolist() * whole if whole else []
        return rounds + samples[rng.sample(range(len(samples)), rest)].tolist()

    def _cut_by(self, ordered: list[int], lengths: Sequence[int]) -> list[list[int]]:
        batches: list[list[int]] = []
        for i in ordered:
            if batches and (len(batches[-1]) + 1) * lengths[i] <= self.max_batch_length:
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches
