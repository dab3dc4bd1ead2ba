"""Size of an optimiser step: number of sequences and of micro-batches, for a wanted effective batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from omnikit.data.padding import STEPS, rounded
from omnikit.data.sample_pools import SamplePools

_POOL = 384  # micro-batches that are cut together: the more, the less padding
_MIXED = 24  # steps of a pool per micro-batch of a step, since few micro-batches of like lengths mix few tasks
_SPARE = 0.98  # share of a pool's micro-batches that full ones may need, in the pools that a plan is tried on
_TRIED = 1536  # micro-batches of the pools that a plan is tried on


@dataclass(frozen=True)
class EffectiveBatch:
    """The wanted size of an optimiser step, of which at most one value is set."""

    sequences: int | None = None
    """Number of sequences over all processes."""
    labels: int | None = None
    """Number of labels over all processes: those in the text stream plus the positions with audio labels."""
    accumulated: int | None = None
    """Number of micro-batches per process, each as full as it may be; 1 if no value is set."""

    @property
    def full(self) -> bool:
        """Whether the number of micro-batches is given, so that they hold as many sequences as they can."""
        return self.sequences is None and self.labels is None


@dataclass(frozen=True)
class StepPlan:
    """Size of each optimiser step, and number of steps of a pool."""

    sequences: int
    micro_batches: int  # over all processes
    steps: int
    max_sequences: int | None = None  # of a micro-batch

    @property
    def draws(self) -> int:
        """Number of samples in a pool."""
        return self.sequences * self.steps


def plan_steps(pools: SamplePools, wanted: EffectiveBatch, processes: int) -> StepPlan:
    """Return the size of optimiser steps.

    Raises:
        ValueError: a step would have fewer sequences than there are processes, or its sequences could not be shared out
            in equally many micro-batches.
    """
    if wanted.full:
        return _plan_for_batches(pools, wanted.accumulated or 1, processes)
    if wanted.labels is None:
        return _plan_for_sequences(pools, wanted.sequences, processes, "effective_batch_size")
    table, mean = pools.table, pools.draws.mean
    sequences = max(1, round(wanted.labels / max(1e-9, mean(table.text_labels) + mean(table.audio_labels))))
    return _plan_for_sequences(pools, sequences, processes, "effective_batch_labels")


def more_batches(count: int) -> int:
    """Return the least of 1, 2, 4, 8, 16, 24, .. that is at least `count`, so that 1, 2, 4 or 8 processes share it."""
    return 2 ** math.ceil(math.log2(count)) if count < 8 else rounded(count, 8)


def _plan_for_sequences(pools: SamplePools, sequences: int, processes: int, flag: str) -> StepPlan:
    """Return the plan with the fewest micro-batches that hold a number of sequences."""
    if sequences < processes:
        raise ValueError(f"{flag}: a step has {sequences} sequences, fewer than the {processes} processes")
    needed = max(1, int(pools.mean_length * sequences / pools.max_batch_length))
    while True:
        count = min(_at_least(needed, sequences, processes), sequences)
        # the shortest samples would otherwise fill a step of far more sequences than wanted
        plan = _with_pools(pools, sequences, count, sequences if count > 1 else math.ceil(1.5 * sequences))
        if count == sequences or _fits(pools, plan):
            break
        needed = count + 1
    if count % processes and pools.max_batch_length < 2 * rounded(pools.longest, STEPS):
        raise ValueError(
            f"max_batch_length: {pools.max_batch_length}; must hold two samples of {pools.longest} steps, since the "
            f"{count} batches of a step are cut again for {processes} processes"
        )
    return plan


def _at_least(needed: int, sequences: int, processes: int) -> int:
    """Return the least suitable number of micro-batches.

    It depends on the number of processes only where a step of few sequences, or of few micro-batches, whose numbers of
    sequences differ much, might leave a process without any.
    """
    count = more_batches(needed)
    return count if count >= 8 and sequences >= 4 * processes else max(count, more_batches(processes))


def _plan_for_batches(pools: SamplePools, accumulated: int, processes: int) -> StepPlan:
    """Return the plan with the most sequences, a multiple of the processes, that a number of micro-batches hold."""
    count = accumulated * processes
    sequences = count * pools.max_batch_length / pools.mean_length
    while True:
        plan = _with_pools(pools, max(count, int(sequences) // processes * processes), count)
        if plan.sequences == count or _fits(pools, plan):
            return plan
        sequences = min(plan.sequences - 1, plan.sequences * _SPARE)


def _with_pools(pools: SamplePools, sequences: int, micro_batches: int, most: int | None = None) -> StepPlan:
    """Return a plan whose pools are large, but draw no sample twice unless a step does."""
    steps = min(_POOL // micro_batches, _MIXED * micro_batches, pools.draws.without_repetition // sequences)
    return StepPlan(sequences, micro_batches, max(1, steps), most)


def _fits(pools: SamplePools, plan: StepPlan) -> bool:
    """Return whether as many micro-batches as planned hold the samples of the first pools, with some room left."""
    count = plan.micro_batches * plan.steps
    tried = min(64, max(4, _TRIED // count))
    spare = math.ceil(_SPARE * count)
    return all(pools.pool(n, plan.draws, plan.max_sequences).full_batches() <= spare for n in range(tried))
