"""Training figures of the current epoch, saved with each checkpoint so that a resumed epoch reports all of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks

from omnikit.losses import StreamLosses
from omnikit.torchrun import Share

_SLOW = 0.95  # weight of the past in the running mean that the progress bar shows


class StreamSums:
    """Losses and label counts per stream, added up over batches, and a running mean of the latest losses.

    Args:
        streams: number of streams S.
    """

    def __init__(self, streams: int):
        self.sums = torch.zeros(streams, dtype=torch.float64)
        self.counts = torch.zeros(streams, dtype=torch.int64)
        self.late = torch.full((streams,), torch.nan)

    def add(self, losses: StreamLosses) -> None:
        """Add the losses of a batch that was learned from."""
        sums, counts = losses.sums.detach().cpu(), losses.counts.cpu()
        self.sums += sums
        self.counts += counts
        means = sums / counts.clamp(min=1)
        moved = torch.where(self.late.isnan(), means, _SLOW * self.late + (1 - _SLOW) * means)
        self.late = torch.where(counts > 0, moved, self.late)

    def gather(self) -> None:
        """Move the sums of all processes to the main one; the others begin again at zero."""
        if not sb.utils.distributed.is_distributed_initialized():
            return
        for total in (self.sums, self.counts):
            moved = total.to(collective_device())
            torch.distributed.reduce(moved, dst=0)
            total.copy_(moved if sb.utils.distributed.if_main_process() else torch.zeros_like(moved))

    def losses(self) -> StreamLosses:
        """Return everything that was added so far, on the CPU."""
        return StreamLosses(self.sums.float(), self.counts)

    def means(self) -> dict[str, float]:
        """Return the mean loss in nats of each stream that had labels, by the stream's name."""
        return _named((self.sums / self.counts).tolist())

    def recent(self) -> dict[str, float]:
        """Return a running mean of the latest losses of each stream, by the stream's name."""
        return _named(self.late.tolist())


@register_checkpoint_hooks
class EpochProgress:
    """Holds the loss sums, seconds and skipped optimiser steps from which an epoch's training figures are computed."""

    def __init__(self, streams: int):
        self.streams = streams
        self.restart()

    def restart(self) -> None:
        """Begin an epoch."""
        self.sums = StreamSums(self.streams)
        self.skipped = 0
        self.before = 0.0  # seconds until the run was interrupted
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time that the epoch's training has taken, in seconds, without the breaks between an end and a resume."""
        return self.before + time.monotonic() - self.began

    @mark_as_saver
    def save(self, path: str | Path) -> None:
        """Write the state as JSON; call `StreamSums.gather` on all processes before."""
        state = {
            "sums": self.sums.sums.tolist(),
            "counts": self.sums.counts.tolist(),
            "skipped": self.skipped,
            "seconds": self.seconds,
        }
        Path(path).write_text(json.dumps(state), encoding="utf-8")

    @mark_as_loader
    def load(self, path: str | Path, end_of_epoch: bool) -> None:
        """Go on from a state in the middle of an epoch; sums are those of all processes, so only one takes them."""
        self.restart()
        if end_of_epoch:
            return
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        self.skipped, self.before = state["skipped"], state["seconds"]
        if Share.of_torchrun().rank == 0:
            self.sums.sums = torch.tensor(state["sums"], dtype=torch.float64)
            self.sums.counts = torch.tensor(state["counts"], dtype=torch.int64)


def _named(values: list[float]) -> dict[str, float]:
    names = ["text", *(f"audio{k}" for k in range(1, len(values)))]
    return {name: value for name, value in zip(names, values, strict=True) if value == value}


def collective_device() -> torch.device:
    """Return where tensors must be for a collective operation: NCCL knows GPUs alone."""
    nccl = sb.utils.distributed.is_distributed_initialized() and torch.distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
