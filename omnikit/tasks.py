"""Tasks as data: the kind of question, the marks of the prompt, the streams that answer and the positions with loss.

A sample of A1A2 with two codebooks, delays 1 and 2, three positions of speech, the answer "yes ." and two frames:

                 prompt                        answer
    text   | input  pad pad pad eot  answer  | yes  .    eot  pad  pad
    audio0 | input   f   f   f  eoa  answer  | pad  a0   b0   eoa  pad
    audio1 | input   f   f   f  eoa  answer  | pad  pad  a1   b1   eoa

`f` marks positions whose embedding is an adapted speech feature. In the answer, labels stand in the text stream up to
its `eot`, and in each audio stream up to the last stream's `eoa`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from omnikit.interfaces import Pattern
from omnikit.tokens import IGNORE, TokenLayout


@dataclass(frozen=True)
class Task:
    """A task: the kind of question that is given and the kind of answer that is generated."""

    name: str
    given: str
    """Kind of the question, `speech` or `text`."""
    text_mark: str
    """Mark of the text stream at the last prompt position: `answer`, `asr` or `pad`."""
    speaks: bool
    """Whether the answer is spoken, so that the audio streams answer, too."""
    text_forced: bool = False
    """Whether the text stream is fed the given text instead of sampled tokens, and carries no loss."""
    repeats: bool = False
    """Whether the answer repeats the text of the question, so that it is a manifest entry's `t1` instead of `t2`."""

    @property
    def transcribes(self) -> bool:
        """Whether this task is speech recognition, whose answers are scored by word error rate."""
        return self.repeats and self.writes

    @property
    def writes(self) -> bool:
        return not self.text_forced


TASKS = {
    task.name: task
    for task in (
        Task("A1T1", given="speech", text_mark="asr", speaks=False, repeats=True),
        Task("T1A1", given="text", text_mark="pad", speaks=True, text_forced=True, repeats=True),
        Task("A1T2", given="speech", text_mark="answer", speaks=False),
        Task("T1T2", given="text", text_mark="answer", speaks=False),
        Task("A1A2", given="speech", text_mark="answer", speaks=True),
        Task("T1A2", given="text", text_mark="answer", speaks=True),
    )
}
"""Mapping from names to tasks: speech recognition, speech synthesis, and four ways to answer a question."""
TASK_NAMES = tuple(TASKS)
"""Names of the tasks in the order of their numbers, by which tables and batches refer to them."""


def text_only(task: Task) -> Task:
    """Return the task with the same kind of question whose answer is text only."""
    return next(t for t in TASKS.values() if t.given == task.given and t.text_mark == task.text_mark and not t.speaks)


def asked_in(task: Task, given: str) -> Task:
    """Return the task with the same kind of answer whose question is `speech` or `text`."""
    if given == task.given:
        return task
    kind = given, task.text_mark, task.speaks
    return next(t for t in TASKS.values() if (t.given, t.text_mark, t.speaks) == kind)


@dataclass(frozen=True)
class Prompt:
    """The steps [S, L] of a prompt; speech features replace the audio streams at positions 1 .. `audio_frames`."""

    steps: Tensor
    audio_frames: int = 0


class LabelSpan(NamedTuple):
    """Positions of a sample with the labels of one answer: they begin at `start` in all streams."""

    start: int
    """Position that predicts the first answer step."""
    text: int
    """Number of labels in the text stream."""
    audio: int
    """Number of labels in each audio stream."""


class SpeechSpan(NamedTuple):
    """Positions of a sample that hold the adapted speech features of one question."""

    start: int
    frames: int


@dataclass(frozen=True)
class Sample:
    """A training sample of L positions: the steps of prompt and answer, and those that are to be predicted.

    Position i is fed step i and is to predict step i + 1. Labels stand at `start` and the positions after it. A
    sample of several turns, see `make_dialog`, has labels in each.
    """

    whole: np.ndarray
    """All steps [S, L + 1]; the last one is only predicted, since the step after it would lie outside the sample."""
    start: int
    """Position that predicts the first answer step."""
    text_labels: int
    """Number of labels in the text stream, of all turns."""
    audio_labels: int
    """Number of labels in each audio stream, of all turns."""
    audio_frames: int = 0
    """Number of positions that hold adapted speech features, of all turns."""
    task: int = 0
    """Number of the task, see `TASK_NAMES`."""
    turn_labels: tuple[LabelSpan, ...] = ()
    """Labels of each turn if there are several."""
    turn_speech: tuple[SpeechSpan, ...] = ()
    """Speech features of each spoken question if there are several turns."""

    @property
    def length(self) -> int:
        """Number of positions L."""
        return self.whole.shape[1] - 1

    @property
    def steps(self) -> Tensor:
        """Steps that the positions are fed [S, L]."""
        return torch.from_numpy(self.whole[:, :-1])

    @cached_property
    def labels(self) -> Tensor:
        """Labels of the positions [S, L], `IGNORE` where there is none."""
        labels = np.full_like(self.whole[:, :-1], IGNORE)
        for start, *counts in self.label_spans:
            for streams, count in zip((slice(1), slice(1, None)), counts, strict=True):
                labels[streams, start : start + count] = self.whole[streams, start + 1 :][:, :count]
        return torch.from_numpy(labels)

    @property
    def label_spans(self) -> tuple[LabelSpan, ...]:
        """Labels of each turn."""
        return self.turn_labels or (LabelSpan(self.start, self.text_labels, self.audio_labels),)

    @property
    def speech_spans(self) -> tuple[SpeechSpan, ...]:
        """Speech features of each spoken question; one without frames if no question is spoken."""
        return self.turn_speech or (SpeechSpan(AUDIO_START, self.audio_frames),)


AUDIO_START = 1
"""Position of the first speech feature in a prompt."""
_AROUND = AUDIO_START + 2  # steps of a prompt besides the question: the opening step, the end step and the marks


def prompt_length(given: int) -> int:
    """Return the number of steps of a prompt with `given` text ids or adapted speech features."""
    return given + _AROUND


def make_prompt(
    task: Task, layout: TokenLayout, *, text: Sequence[int] | None = None, audio_frames: int | None = None
) -> Prompt:
    """Return the prompt of a task for given text ids, or for a number of adapted speech features."""
    given = _given(task, text, audio_frames)
    steps = _pads(layout, prompt_length(given))
    _write_prompt(steps, task, layout, text, given)
    return Prompt(torch.from_numpy(steps), given if task.given == "speech" else 0)


def _given(task: Task, text: Sequence[int] | None, audio_frames: int | None) -> int:
    """Return the number of steps that the question takes in a prompt."""
    if task.given == "speech":
        assert audio_frames is not None, f"{task.name} is given speech"
        return audio_frames
    assert text is not None, f"{task.name} is given text"
    return len(text)


def _pads(layout: TokenLayout, length: int) -> np.ndarray:
    """Return `length` steps [S, L] of pads."""
    steps = np.empty((layout.num_streams, length), dtype=np.int64)
    steps[:] = layout.step("pad", "pad")[:, None]
    return steps


def _write_prompt(
    steps: np.ndarray, task: Task, layout: TokenLayout, text: Sequence[int] | None, given: int
) -> None:
    """Write the prompt of a task into the first of the steps [S, L], which are pads."""
    speech, end = task.given == "speech", AUDIO_START + given
    steps[:, 0] = layout.step("input", "input" if speech else "pad")
    if not speech:
        steps[0, AUDIO_START:end] = text
    steps[:, end] = layout.step("eot", "eoa" if speech else "pad")
    steps[:, end + 1] = layout.step(task.text_mark, "answer" if task.speaks else "pad")


def answer_ends(task: Task, pattern: Pattern, *, text: int, frames: int = 0) -> list[int]:
    """Return the answer steps at which the end marks stand; the answer ends with the last of them.

    `eot` stands after `text` text ids and, if the task speaks, the `eoa` of each audio stream after `frames` frames.
    """
    audio = [pattern.end(stream, frames) for stream in range(len(pattern.carries))] if task.speaks else []
    return [text, *audio]


def sample_length(task: Task, pattern: Pattern, *, given: int, text: int, frames: int = 0) -> int:
    """Return the number of steps of a sample from `make_sample`: all steps of prompt and answer but the last one.

    Args:
        given: number of text ids or adapted speech features in the prompt.
        text: number of text ids in the answer.
        frames: number of frames in the answer.
    """
    return prompt_length(given) + max(answer_ends(task, pattern, text=text, frames=frames))


def label_counts(task: Task, pattern: Pattern, *, text: int, frames: int = 0) -> tuple[int, int]:
    """Return the number of labels of a sample from `make_sample` in the text stream and in each audio stream.

    Args:
        text: number of text ids in the answer.
        frames: number of frames in the answer.
    """
    return _label_counts(task, answer_ends(task, pattern, text=text, frames=frames))


def _label_counts(task: Task, ends: list[int]) -> tuple[int, int]:
    return (ends[0] + 1 if task.writes else 0), (max(ends[1:]) + 1 if task.speaks else 0)


def label_counts_before_ends(task: Task, ends: list[int]) -> tuple[int, int]:
    """Return the numbers of labels like `label_counts` of an answer whose labels end before its first end marks.

    Args:
        ends: answer steps of the end marks, see `answer_ends`.
    """
    return (ends[0] if task.writes else 0), (min(ends[1:]) if task.speaks else 0)


def _write_answer(
    steps: np.ndarray, layout: TokenLayout, pattern: Pattern, ends: list[int], text: Sequence[int], codes: Tensor | None
) -> None:
    """Write an answer with the given ends into steps [S, L], which are pads."""
    steps[0, : ends[0]] = text
    steps[0, ends[0]] = layout.text.eot
    if codes is not None:
        pattern.place(layout.to_ids(codes.numpy()), steps[1:])
        for stream, end in enumerate(ends[1:]):
            steps[1 + stream, end] = layout.audio[stream].eoa


def make_sample(
    task: Task,
    layout: TokenLayout,
    pattern: Pattern,
    *,
    question: Sequence[int] | None = None,
    audio_frames: int | None = None,
    answer: Sequence[int],
    codes: Tensor | None = None,
    interrupted: bool = False,
) -> Sample:
    """Return a training sample of prompt and answer, in which each position predicts the next step.

    Args:
        question: text ids of a written question, as a list or an array.
        audio_frames: number of adapted speech features of a spoken question.
        answer: text ids of the answer, as a list or an array.
        codes: codes [K, T] of its speech, of any integer type; None = the task does not speak.
        interrupted: whether `answer` and `codes` are the part of an answer that was heard, see `omnikit.turns`. Labels
            then end before the first end mark, so that nobody learns to stop there.
    """
    assert codes is not None or not task.speaks, f"{task.name} answers with speech"
    given = _given(task, question, audio_frames)
    at, frames = prompt_length(given), codes.shape[1] if task.speaks else 0
    ends = answer_ends(task, pattern, text=len(answer), frames=frames)
    steps = _pads(layout, at + max(ends) + 1)
    _write_prompt(steps, task, layout, question, given)
    _write_answer(steps[:, at:], layout, pattern, ends, answer, codes if task.speaks else None)
    spoken = given if task.given == "speech" else 0
    labels = label_counts_before_ends(task, ends) if interrupted else _label_counts(task, ends)
    return Sample(steps, at - 1, *labels, spoken, TASK_NAMES.index(task.name))


def make_dialog(task: Task, turns: Sequence[Sample]) -> Sample:
    """Return the training sample of a dialog: all steps of its turns, closing steps included, with loss on each answer.

    Args:
        task: task as which its labels count; single turns may have another kind of question.
        turns: samples of the turns from `make_sample`.
    """
    ends = accumulate(turn.whole.shape[1] for turn in turns)
    placed = list(zip([0, *ends], turns, strict=False))
    labels = [LabelSpan(at + turn.start, turn.text_labels, turn.audio_labels) for at, turn in placed]
    speech = [SpeechSpan(at + AUDIO_START, turn.audio_frames) for at, turn in placed if turn.audio_frames]
    return Sample(
        np.concatenate([turn.whole for turn in turns], axis=1),
        labels[0].start,
        sum(span.text for span in labels),
        sum(span.audio for span in labels),
        sum(span.frames for span in speech),
        TASK_NAMES.index(task.name),
        tuple(labels),
        tuple(speech),
    )


def draw(steps: Tensor, layout: TokenLayout, audio_frames: int = 0) -> str:
    """Return a drawing of steps [S, L] with one line of token names per stream, as at the top of this file."""
    lines = []
    for stream in range(layout.num_streams):
        ids = layout.text if stream == 0 else layout.audio[stream - 1]
        names = {value: name for name, value in vars(ids).items()}
        cells = [names.get(int(i), str(int(i))) for i in steps[stream]]
        if stream and audio_frames:
            cells[AUDIO_START : AUDIO_START + audio_frames] = ["f"] * audio_frames
        lines.append(" ".join(f"{cell:>6}" for cell in cells))
    return "\n".join(lines)
