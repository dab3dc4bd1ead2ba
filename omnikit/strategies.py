"""Decoding strategies as data: how many sequences answer a request, and which of them each stream is sampled from."""

from __future__ import annotations

from dataclasses import dataclass

from omnikit.tasks import Task, text_only


@dataclass(frozen=True)
class Strategy:
    """A decoding strategy: the number of sequences that answer a request, and their roles.

    Every sequence is fed the emitted text token. Sequences that answer with text only are fed pads in the audio
    streams, the others the emitted audio tokens.

    Args:
        text_only: for each sequence, whether it is asked for text only.
        text_from: index of the sequence whose text logits are sampled.
        audio_from: index of the sequence whose audio logits are sampled.
    """

    text_only: tuple[bool, ...]
    text_from: int = 0
    audio_from: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "text_only", tuple(self.text_only))
        sequences = len(self.text_only)
        for flag, sequence in (("text_from", self.text_from), ("audio_from", self.audio_from)):
            if not 0 <= sequence < sequences:
                raise ValueError(f"strategy.{flag}: sequence {sequence}; there are sequences 0..{sequences - 1}")
        if self.text_only[self.audio_from]:
            raise ValueError(f"strategy.audio_from: sequence {self.audio_from} is asked for text alone")

    def for_task(self, task: Task) -> Strategy:
        """Return the decoding strategy for a task: this one, or `PARALLEL` where a second sequence could add nothing.

        That is where the answer is text only, or where its text is given.
        """
        return self if task.speaks and task.writes else PARALLEL

    def sequence_tasks(self, task: Task) -> list[Task]:
        """Return the tasks of the sequences that answer one request: the request's task, or its text-only variant."""
        return [text_only(task) if quiet else task for quiet in self.text_only]


PARALLEL = Strategy(text_only=(False,))
BATCH_PARALLEL = Strategy(text_only=(False, True), text_from=1)
