"""Gradient accumulation: the number of batches of one optimiser step for a wanted effective batch size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GradAccumulation:
    """The batches whose gradients are averaged for one optimiser step."""

    sequences: float  # mean number of sequences
    accumulated: int  # batches per process
    processes: int

    @property
    def batches(self) -> int:
        """Number of batches of all processes in one optimiser step."""
        return self.accumulated * self.processes

    def __str__(self) -> str:
        return (
            f"effective batch: {self.sequences:.0f} sequences in {self.batches} batches on {self.processes} processes"
        )


def plan_accumulation(
    wanted: int | None, per_batch: float, processes: int, accumulated: int | None = None
) -> GradAccumulation:
    """Return the number of batches to accumulate so that their sequences are as close to `wanted` as possible.

    Args:
        wanted: sequences per optimiser step; None means one batch of each process.
        per_batch: mean number of sequences in a batch.
        processes: number of processes.
        accumulated: batches per process, if the command line fixes it; `wanted` is ignored then.

    Raises:
        ValueError: `wanted` is below 1.
    """
    if wanted is not None and wanted < 1:
        raise ValueError(f"effective_batch_size: {wanted}; must be 1 sequence or more, or null")
    if accumulated is None:
        accumulated = 1 if wanted is None else max(1, round(wanted / (per_batch * processes)))
    return GradAccumulation(per_batch * accumulated * processes, accumulated, processes)
