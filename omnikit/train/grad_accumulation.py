"""How many batches make one optimiser step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GradAccumulation:
    """What one optimiser step sees: batches of every process, their gradients averaged."""

    sequences: float  # in the mean
    accumulated: int  # batches of each process
    processes: int

    @property
    def batches(self) -> int:
        """Batches of all processes together."""
        return self.accumulated * self.processes

    def __str__(self) -> str:
        return (
            f"effective batch: {self.sequences:.0f} sequences in {self.batches} batches on {self.processes} processes"
        )


def plan_accumulation(
    wanted: int | None, per_batch: float, processes: int, accumulated: int | None = None
) -> GradAccumulation:
    """Batches are as large as their steps allow, so the number of sequences is met as nearly as whole batches can.

    Args:
        wanted: sequences; None = one batch of each process.
        per_batch: sequences of a batch, in the mean.
        accumulated: batches of each process, where that is fixed.

    Raises:
        ValueError: fewer than one sequence.
    """
    if wanted is not None and wanted < 1:
        raise ValueError(f"effective_batch_size: {wanted}; must be 1 sequence or more, or null")
    if accumulated is None:
        accumulated = 1 if wanted is None else max(1, round(wanted / (per_batch * processes)))
    return GradAccumulation(per_batch * accumulated * processes, accumulated, processes)
