"""Baseline of benchmarks/sampler.py: the batch sampler that drew tasks at random in pools of 24 batches.

This is a frozen, minimal copy of the code of that time, with the accumulation of a fixed number of batches, which
SpeechBrain shared out over the processes at random.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

STEPS = 8
POOL = 24


class EarlierSampler:
    """A sampler of batches that draws tasks by weight, and samples of a task with repetition between pools.

    Args:
        tasks: number of the task of each sample [samples].
        lengths: length of each sample in steps [samples].
        weights: weight of each task number.
        max_batch_length: maximum number of steps in a batch, padding included.
    """

    def __init__(
        self, tasks: np.ndarray, lengths: np.ndarray, weights: dict[int, float], max_batch_length: int, seed: int = 0
    ):
        self.of_task = {task: np.flatnonzero(tasks == task) for task in weights}
        self.weights, self.max_batch_length, self.seed = weights, max_batch_length, seed
        self.lengths = -(-lengths // STEPS) * STEPS
        mean = int(self.lengths.sum()) / len(self.lengths)
        self.samples_per_pool = max(1, int(POOL * max_batch_length / mean))

    def __iter__(self) -> Iterator[list[int]]:
        number = 0
        while True:
            yield from self.pool(number)
            number += 1

    def pool(self, number: int) -> list[list[int]]:
        """Return the batches of a pool, in random order."""
        rng = random.Random(f"{self.seed} 1 {number}")
        drawn = rng.choices(list(self.weights), list(self.weights.values()), k=self.samples_per_pool)
        samples = [i for task in self.weights for i in self._some(task, drawn.count(task), rng)]
        batches = self._cut(sorted(samples, key=lambda i: (self.lengths[i], rng.random())))
        rng.shuffle(batches)
        return batches

    def _some(self, task: int, count: int, rng: random.Random) -> list[int]:
        samples = self.of_task[task]
        whole, rest = divmod(count, len(samples))
        return samples.tolist() * whole + samples[rng.sample(range(len(samples)), rest)].tolist()

    def _cut(self, ordered: list[int]) -> list[list[int]]:
        batches: list[list[int]] = []
        for i in ordered:
            if batches and (len(batches[-1]) + 1) * self.lengths[i] <= self.max_batch_length:
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches


def earlier_steps(sampler: EarlierSampler, wanted: int, processes: int, steps: int) -> list[list[list[list[int]]]]:
    """Return the batches of each process for a number of optimiser steps of about `wanted` sequences."""
    source = iter(sampler)
    per_batch = np.mean([len(next(source)) for _ in range(4 * POOL)])
    accumulated = max(1, round(wanted / (per_batch * processes)))
    source = iter(sampler)
    batches = [next(source) for _ in range(steps * accumulated * processes)]
    random.Random(0).shuffle(batches)
    return [
        [batches[(step * processes + rank) * accumulated :][:accumulated] for rank in range(processes)]
        for step in range(steps)
    ]
