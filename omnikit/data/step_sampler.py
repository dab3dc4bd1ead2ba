"""Sampler of training micro-batches whose unit is the optimiser step of the whole run.

The samples of several steps, a pool, are drawn together, sorted by length, cut into micro-batches of nearly equal cost,
and dealt to the pool's steps and to the processes. A pool is a function of the seed and its number, so that a run
resumes at any step without iterating over those before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch.utils.data import Sampler

from omnikit.data.cut_batches import BatchCutter
from omnikit.data.deal_batches import deal_to_processes, deal_to_steps
from omnikit.data.label_cost import LabelCost
from omnikit.data.micro_batch import MicroBatch
from omnikit.data.padding import STEPS, rounded
from omnikit.data.sample_draws import SampleDraws
from omnikit.data.sample_pools import TIES, SamplePools
from omnikit.data.step_plan import EffectiveBatch, more_batches, plan_steps
from omnikit.tasks import TASK_NAMES
from omnikit.torchrun import Share


class StepSampler(Sampler[MicroBatch]):
    """A batch sampler that yields the micro-batches of this process, step after step, for an epoch.

    All processes get equally many micro-batches of an optimiser step. The samples of a step are the same for any number
    of processes, unless the effective batch is given by micro-batches per process, or is so small that a process might
    get none (see `omnikit.data.step_plan`).

    Args:
        draws: the sequence of samples that is trained on.
        max_batch_length: maximum number of steps in a micro-batch, padding included.
        steps_per_epoch: optimiser steps per epoch.
        wanted: wanted size of an optimiser step; None = one full micro-batch per process.
        label_cost: cost of labels, by which micro-batches are made equal.
        packed: whether a row of a batch may hold several samples.
        share: rank of this process and number of processes; None = from torchrun's environment variables.

    Raises:
        ValueError: a sample is longer than a micro-batch, or a step has too few sequences for the processes.
    """

    def __init__(
        self,
        draws: SampleDraws,
        *,
        max_batch_length: int,
        steps_per_epoch: int,
        wanted: EffectiveBatch | None = None,
        label_cost: LabelCost | None = None,
        packed: bool = False,
        share: Share | None = None,
    ):
        self.pools = SamplePools(draws, max_batch_length, label_cost or LabelCost(), packed)
        self.steps_per_epoch = steps_per_epoch
        self.wanted, self.share = wanted or EffectiveBatch(), share or Share.of_torchrun()
        self.plan = plan_steps(self.pools, self.wanted, self.share.processes)
        self.start_at(0)

    def start_at(self, step: int) -> None:
        """Let the next iteration begin with an optimiser step of the run, counted from 0, and end with its epoch."""
        epoch, taken = divmod(step, self.steps_per_epoch)
        self.set_epoch(epoch + 1, taken)

    def set_epoch(self, epoch: int, taken: int = 0) -> None:
        """Let the next iteration yield an epoch, counted from 1, without its first `taken` steps."""
        self.epoch, self.taken = epoch, taken

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches of each process in an optimiser step; single steps may need more."""
        processes = self.share.processes
        return min(-(-self.plan.micro_batches // processes), self.plan.sequences // processes)

    def __len__(self) -> int:
        """Return the expected number of micro-batches of this process in the next iteration."""
        return (self.steps_per_epoch - self.taken) * self.micro_batches

    def __iter__(self) -> Iterator[MicroBatch]:
        first, number = (self.epoch - 1) * self.steps_per_epoch, -1
        for step in range(first + self.taken, first + self.steps_per_epoch):
            if step // self.plan.steps != number:
                number = step // self.plan.steps
                pool = self.pool_steps(number)
            yield from self._own(pool[step % self.plan.steps], step)

    def pool_steps(self, number: int) -> list[list[np.ndarray]]:
        """Return the sample indices of each micro-batch of each step of a pool, before processes share them."""
        pool = self.pools.pool(number, self.plan.draws, self.plan.max_sequences)
        steps, count = self.plan.steps, self.plan.micro_batches
        while (pieces := pool.cut(count * steps)) is None:  # rare: these samples are longer than those of other pools
            count += self.share.processes if self.wanted.full else 1
            count = min(count if self.wanted.full else more_batches(count), self.plan.sequences)
        sizes = [len(piece) if self.wanted.labels is None else self.pools.labels(piece) for piece in pieces]
        dealt = deal_to_steps(self.pools.costs(pieces), np.array(sizes), steps)
        order = np.random.default_rng([self.pools.draws.seed, TIES, number, 1]).permutation(steps)
        return [[pieces[i] for i in dealt[step].tolist()] for step in order]

    def cover(self, lengths: Sequence[int], share: Share | None = None) -> list[list[int]]:
        """Return a process' batches for validation; each of the given samples is in one batch of one process.

        Their rows hold one sample each.

        Args:
            lengths: length of each sample in steps.
            share: rank of the process and number of processes; None = one process gets all.
        """
        share, lengths = share or Share(), rounded(np.asarray(lengths), STEPS)
        order = np.argsort(lengths, kind="stable")
        cutter = BatchCutter(lengths[order], np.zeros(len(order)), self.pools.max_batch_length)
        found = [order[start:end].tolist() for start, end in cutter.fill()]
        return found[share.rank :: share.processes]

    def described(self, sources: Mapping[int, str]) -> str:
        """Return the effective batch, its padding and the shares of tasks and sources in one line for the log.

        Args:
            sources: names of the sources by number.
        """
        pieces = [piece for step in self.pool_steps(0) for piece in step]
        padded = sum(self.pools.steps(piece) for piece in pieces)
        filled = sum(int(self.pools.table.lengths[piece].sum()) for piece in pieces)
        batches = self.micro_batches * self.share.processes
        labels = "" if self.wanted.labels is None else f" of {self.wanted.labels} labels"
        return (
            f"effective batch: {self.plan.sequences} sequences{labels} in {batches} batches on "
            f"{self.share.processes} processes; {padded / self.plan.steps / batches:.0f} of at most "
            f"{self.pools.max_batch_length} steps in a batch, {1 - filled / padded:.1%} padding; drawn: "
            + ", ".join(self._shares(sources))
        )

    def _shares(self, sources: Mapping[int, str]) -> Iterator[str]:
        cells = self.pools.draws.cells
        for task in dict.fromkeys(cell.task for cell in cells):
            own = [cell for cell in cells if cell.task == task]
            named = [f"{sources.get(cell.source, cell.source)} {cell.share:.1%}" for cell in own]
            yield f"{TASK_NAMES[task]} {sum(cell.share for cell in own):.1%} ({', '.join(named)})"

    def _own(self, pieces: list[np.ndarray], step: int) -> Iterator[MicroBatch]:
        """Yield this process' micro-batches of a step of the run."""
        samples = np.concatenate(pieces)
        if len(pieces) % self.share.processes:
            pieces = self._cut_again(samples, len(pieces))
        own = deal_to_processes(self.pools.costs(pieces), self.share.processes)[self.share.rank]
        labels = self._labels(samples)
        for number, i in enumerate(own, start=1):
            yield MicroBatch(pieces[i].tolist(), labels, number == len(own), self.pools.packed, step)

    def _cut_again(self, samples: np.ndarray, least: int) -> list[np.ndarray]:
        """Cut the samples of a step into at least `least` micro-batches, equally many for each process."""
        pool, processes = self.pools.sorted(samples), self.share.processes
        if len(samples) < processes:
            raise ValueError(
                f"a step has {len(samples)} sequences for {processes} processes; raise the effective batch"
            )
        count = min(-(-least // processes), len(samples) // processes)
        while (pieces := pool.cut(count * processes)) is None:
            count += 1
        return pieces

    def _labels(self, samples: np.ndarray) -> np.ndarray:
        """Return the number of labels of samples by task, in the text stream and in each audio stream [tasks, 2]."""
        table = self.pools.table
        columns = (table.text_labels, table.audio_labels)
        sums = [np.bincount(table.tasks[samples], column[samples], len(TASK_NAMES)) for column in columns]
        return np.stack(sums, axis=1).astype(np.int64)
