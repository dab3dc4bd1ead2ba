"""Decoding strategies as data: how many rows decode one question and which row's tokens are taken and fed."""

from __future__ import annotations

from dataclasses import dataclass

from omnikit.tasks import Task, text_only


@dataclass(frozen=True)
class Strategy:
    """One entry per row in `text_only`: whether that row is asked for text alone (it is then fed pads in the audio
    streams, the other rows the emitted audio tokens; every row is fed the emitted text token).

    Args:
        text_only: per row.
        text_from: row whose text logits are sampled.
        audio_from: row whose audio logits are sampled.
    """

    text_only: tuple[bool, ...]
    text_from: int = 0
    audio_from: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "text_only", tuple(self.text_only))
        rows = len(self.text_only)
        for flag, row in (("text_from", self.text_from), ("audio_from", self.audio_from)):
            if not 0 <= row < rows:
                raise ValueError(f"strategy.{flag}: row {row}; there are rows 0..{rows - 1}")
        if self.text_only[self.audio_from]:
            raise ValueError(f"strategy.audio_from: row {self.audio_from} is asked for text alone")

    def for_task(self, task: Task) -> Strategy:
        """This strategy, or one row where a second one could add nothing: text-only answers, and given text."""
        return self if task.speaks and task.writes else PARALLEL

    def row_tasks(self, task: Task) -> list[Task]:
        """The task of each row."""
        return [text_only(task) if quiet else task for quiet in self.text_only]


PARALLEL = Strategy(text_only=(False,))
BATCH_PARALLEL = Strategy(text_only=(False, True), text_from=1)
