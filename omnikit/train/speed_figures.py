"""Figures of the speed of a training: positions per second, MFU, waiting, padding, memory and the time that is left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch

from omnikit.data.collate import Batch
from omnikit.model import OmniLM
from omnikit.train.operations import StepOperations, peak_operations

RECENT = 100
"""Number of batches over which the progress bar shows the speed."""


@dataclass
class Work:
    """Work of some batches, and the seconds that they took."""

    positions: float = 0.0  # padding excluded
    padded: float = 0.0  # padding included
    audio_seconds: float = 0.0  # of speech input and speech output
    operations: float = 0.0
    waited: float = 0.0  # seconds in which the training loop waited for data
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class SpeedFigures:
    """Counts the work of this process' batches, and divides it by the time.

    The clock is read on the CPU, which may be some batches ahead of a GPU, so that nothing waits for the figures.

    Args:
        model: model that is trained; its trainable parts do not change any more.
        precision: precision of the training, as SpeechBrain names it.
        processes: number of processes, each of which does about the same work.
        loader: data loader. If it has `waiting.seconds`, the seconds that the training loop waited for it since its
            iteration began, their share of the time is reported.
        clock: function that returns the time in seconds.
    """

    def __init__(
        self,
        model: OmniLM,
        precision: str = "fp32",
        processes: int = 1,
        loader: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.model, self.processes, self.loader, self.clock = model, processes, loader, clock
        self.operations = StepOperations(model)
        self.peak = peak_operations(model.device, precision)
        self.encoder_rate, self.code_rate = _rate(model.encoder), _rate(model.codec) * model.pattern.stride
        self.began, self.steps = clock(), 0
        self.restart()

    def restart(self) -> None:
        """Begin the figures of an epoch."""
        self.recent: deque[Work] = deque(maxlen=RECENT)
        self.total = Work()
        self.read = self.clock(), self._waited()
        if self.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.model.device)

    def add(self, batch: Batch, *, ends_step: bool = True) -> None:
        """Count a batch that was trained on just now; `ends_step` says whether an optimiser step followed it."""
        sizes, now = batch.sizes, (self.clock(), self._waited())
        self.steps += ends_step
        sample_rate = self.model.encoder.sample_rate or 1
        recorded = sizes.wav_samples / sample_rate
        heard = sizes.feature_frames / self.encoder_rate if self.encoder_rate else 0.0
        work = Work(
            sizes.positions,
            sizes.padded,
            recorded + heard + (sizes.code_steps / self.code_rate if self.code_rate else 0.0),
            self.operations.count(
                sequences=sizes.sequences,
                positions=sizes.positions,
                text_labels=len(batch.text.positions),
                audio_labels=len(batch.audio.positions),
                frames=sizes.feature_frames + round(recorded * self.encoder_rate),
            ),
            now[1] - self.read[1] if now[1] >= self.read[1] else now[1],  # less after an iteration has begun
            now[0] - self.read[0],
        )
        self.read = now
        self.recent.append(work)
        self.total += work

    def figures(self, steps_left: int) -> dict[str, float]:
        """Return the figures of the epoch for the log.

        Args:
            steps_left: number of optimiser steps until the end of the run.

        Returns:
            `positions_per_second` and `audio_seconds_per_second` of all processes, padding excluded; `mfu`, the share
            of a GPU's peak operations; `waiting`, the share of time without data; `padding`, the share of positions
            that are padding; `memory_gib`, the peak of GPU memory; `hours_left`, from the speed of the run until now.
            Figures that cannot be told are left out.
        """
        figures = self._speed(self.total)
        figures["audio_seconds_per_second"] = self.processes * self.total.audio_seconds / max(self.total.seconds, 1e-9)
        if hasattr(self.loader, "waiting"):
            figures["waiting"] = self.total.waited / max(self.total.seconds, 1e-9)
        figures["padding"] = 1 - self.total.positions / max(self.total.padded, 1)
        if self.model.device.type == "cuda":
            figures["memory_gib"] = torch.cuda.max_memory_allocated(self.model.device) / 2**30
        if self.steps:
            figures["hours_left"] = (self.clock() - self.began) / self.steps * steps_left / 3600
        return figures

    def shown(self) -> dict[str, str]:
        """Return recent figures for the progress bar: thousands of positions per second, and MFU."""
        recent = self._speed(_sum(self.recent))
        shown = {"k/s": f"{recent['positions_per_second'] / 1000:.3g}"}
        return {**shown, "MFU": f"{recent['mfu']:.0%}"} if "mfu" in recent else shown

    def _speed(self, work: Work) -> dict[str, float]:
        seconds = max(work.seconds, 1e-9)
        speed = {"positions_per_second": self.processes * work.positions / seconds}
        return speed if self.peak is None else {**speed, "mfu": work.operations / seconds / self.peak}

    def _waited(self) -> float:
        return self.loader.waiting.seconds if hasattr(self.loader, "waiting") else 0.0


def described(figures: dict[str, float]) -> str:
    """Return the figures of an epoch as one line for people."""
    forms = {
        "positions_per_second": "{:,.0f} positions/s",
        "audio_seconds_per_second": "{:,.0f} s of audio/s",
        "mfu": "MFU {:.0%}",
        "waiting": "waited for data {:.1%}",
        "padding": "padding {:.1%}",
        "memory_gib": "{:.1f} GiB",
        "hours_left": "{:.1f} h left",
    }
    return ", ".join(form.format(figures[name]) for name, form in forms.items() if name in figures)


def _sum(works: Iterable[Work]) -> Work:
    return sum(works, start=Work())


def _rate(part: Any) -> float:
    """Return the frames per second of an encoder or codec; 0 for one that does not have any."""
    return part.frame_rate if part.sample_rate else 0.0
