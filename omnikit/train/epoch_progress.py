"""Loss sums of the current epoch, saved with each checkpoint so that a resumed epoch reports all its batches.

Sums stay on the device; only reading a figure waits for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks
from torch import Tensor

from omnikit.losses import StreamLosses
from omnikit.tasks import TASK_NAMES
from omnikit.torchrun import Share

_SLOW = 0.95  # weight of the past in the running mean that the progress bar shows


class StreamSums:
    """Sums of the losses and label counts of each task and stream over batches, and a running mean of recent losses.

    Args:
        streams: number of streams S.
        device: device of the losses that are added.
    """

    def __init__(self, streams: int, device: torch.device | str = "cpu"):
        self.sums = torch.zeros(len(TASK_NAMES), streams, dtype=torch.float64, device=device)
        self.counts = torch.zeros(len(TASK_NAMES), streams, dtype=torch.int64, device=device)
        self.late = torch.full((streams,), torch.nan, device=device)
        """Running mean of recent losses in nats by stream [S]; NaN for a stream without any label."""

    def add(self, losses: StreamLosses, usable: Tensor | None = None) -> None:
        """Add the losses of one training or validation batch, without waiting for the device.

        Args:
            usable: bool tensor [] that is False if the batch is to be left out; None means True.
        """
        usable = losses.sums.new_ones((), dtype=torch.bool) if usable is None else usable
        sums, counts = torch.where(usable, losses.sums, 0.0), torch.where(usable, losses.counts, 0)
        self.sums += sums
        self.counts += counts
        labels = counts.sum(dim=0)
        means = sums.sum(dim=0) / labels.clamp(min=1)
        moved = torch.where(self.late.isnan(), means, _SLOW * self.late + (1 - _SLOW) * means)
        self.late = torch.where(labels > 0, moved, self.late)

    def gather(self, everywhere: bool = False) -> None:
        """Add the loss sums of all processes to those of the main process, and reset those of the others to zero.

        Args:
            everywhere: give the totals to all processes instead.
        """
        if not sb.utils.distributed.is_distributed_initialized():
            return
        for total in (self.sums, self.counts):
            moved = total.to(collective_device())
            torch.distributed.all_reduce(moved)
            total.copy_(moved if everywhere or sb.utils.distributed.if_main_process() else torch.zeros_like(moved))

    def losses(self) -> StreamLosses:
        """Return the loss sums and label counts of each task and stream since the last reset, on the CPU."""
        return StreamLosses(self.sums.cpu(), self.counts.cpu())

    def means(self) -> dict[str, float]:
        """Return the mean loss in nats by stream name, without streams that had no labels."""
        return named_streams((self.sums.sum(dim=0) / self.counts.sum(dim=0)).tolist())

    def of_tasks(self, names: Collection[str]) -> StreamSums:
        """Return the sums of some tasks alone, without the running mean."""
        chosen = torch.tensor([name in names for name in TASK_NAMES], device=self.sums.device)[:, None]
        found = StreamSums(self.sums.shape[1], self.sums.device)
        found.sums, found.counts = self.sums * chosen, self.counts * chosen
        return found

    def by_task(self, stream_weights: Tensor) -> dict[str, dict[str, float]]:
        """Return the share of all labels and the mean loss of each task that has labels.

        Args:
            stream_weights: weights of the streams in a task's mean loss [S], on the CPU.
        """
        sums, counts = self.losses()
        every = max(1, int(counts.sum()))
        return {
            name: {
                "labels": int(count.sum()) / every,
                "loss": float(StreamLosses(total[None], count[None]).objective(stream_weights)),
            }
            for name, total, count in zip(TASK_NAMES, sums, counts, strict=True)
            if count.any()
        }


@register_checkpoint_hooks
class EpochProgress:
    """State of the training figures of one epoch: loss sums, seconds, optimiser steps and how many were skipped.

    Args:
        streams: number of streams.
        device: device of the losses.
    """

    def __init__(self, streams: int, device: torch.device | str = "cpu"):
        self.streams, self.device = streams, device
        self.restart()

    def restart(self) -> None:
        """Reset loss sums, numbers of steps and clock at the start of an epoch."""
        self.sums = StreamSums(self.streams, self.device)
        self.steps = self.skipped = 0
        self.before = 0.0  # seconds until the run was interrupted
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time of the epoch in seconds, without interruptions between a stop and a resume."""
        return self.before + time.monotonic() - self.began

    @mark_as_saver
    def save(self, path: str | Path) -> None:
        """Write the training figures of the epoch as JSON; call `StreamSums.gather` on all processes before."""
        state = {
            "sums": self.sums.sums.tolist(),
            "counts": self.sums.counts.tolist(),
            "steps": self.steps,
            "skipped": self.skipped,
            "seconds": self.seconds,
        }
        Path(path).write_text(json.dumps(state), encoding="utf-8")

    @mark_as_loader
    def load(self, path: str | Path, end_of_epoch: bool) -> None:
        """Restore the training figures of an interrupted epoch from a checkpoint, or reset them if the epoch had ended.

        The saved sums cover all processes, so only rank 0 loads them.
        """
        self.restart()
        if end_of_epoch:
            return
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        self.steps, self.skipped, self.before = state["steps"], state["skipped"], state["seconds"]
        if Share.of_torchrun().rank == 0:
            self.sums.sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
            self.sums.counts.copy_(torch.tensor(state["counts"], dtype=torch.int64))


def named_streams(values: list[float]) -> dict[str, float]:
    """Return values of the streams by name, without those that are NaN."""
    names = ["text", *(f"audio{k}" for k in range(1, len(values)))]
    return {name: value for name, value in zip(names, values, strict=True) if value == value}


def collective_device() -> torch.device:
    """Return the device of tensors for collective operations: the GPU with NCCL, else the CPU."""
    nccl = sb.utils.distributed.is_distributed_initialized() and torch.distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
