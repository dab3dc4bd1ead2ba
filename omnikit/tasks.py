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

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Prompt:
    """The steps [S, L] of a prompt; speech features replace the audio streams at positions 1 .. `audio_frames`."""

    steps: Tensor
    audio_frames: int = 0


@dataclass(frozen=True)
class Sample:
    """A training sample: steps [S, L] and labels [S, L], where `labels[:, i]` is what position i is to predict."""

    steps: Tensor
    labels: Tensor
    audio_frames: int = 0
    task: int = 0
    """Number of the task, see `TASK_NAMES`."""


AUDIO_START = 1
"""Position of the first speech feature in a prompt."""
_AROUND = AUDIO_START + 2  # steps of a prompt besides the question: the opening step, the end step and the marks


def prompt_length(given: int) -> int:
    """Return the number of steps of a prompt with `given` text ids or adapted speech features."""
    return given + _AROUND


def make_prompt(
    task: Task, layout: TokenLayout, *, text: list[int] | None = None, audio_frames: int | None = None
) -> Prompt:
    """Return the prompt of a task for given text ids, or for a number of adapted speech features."""
    if task.given == "speech":
        assert audio_frames is not None, f"{task.name} is given speech"
        middle = layout.pads()[:, None].repeat(1, audio_frames)
    else:
        assert text is not None, f"{task.name} is given text"
        middle = layout.pads()[:, None].repeat(1, len(text))
        middle[0] = torch.tensor(text, dtype=torch.long)
    speech = task.given == "speech"
    marks = layout.marks(text=task.text_mark, audio=task.speaks)
    parts = [layout.inputs(audio=speech)[:, None], middle, layout.ends(audio=speech)[:, None], marks[:, None]]
    return Prompt(torch.cat(parts, dim=1), audio_frames if speech else 0)


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
    audio = answer_ends(task, pattern, text=text, frames=frames)[1:]
    return (text + 1 if task.writes else 0), (max(audio) + 1 if audio else 0)


def make_answer(
    task: Task, layout: TokenLayout, pattern: Pattern, *, text: list[int], codes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the steps [S, L] of an answer and a mask [S, L] (bool) of those that carry loss.

    Args:
        text: text ids of the answer.
        codes: codes [K, T] of its speech; None = the task does not speak.
    """
    assert codes is not None or not task.speaks, f"{task.name} answers with speech"
    ends = answer_ends(task, pattern, text=len(text), frames=codes.shape[1] if task.speaks else 0)
    steps = layout.pads()[:, None].repeat(1, max(ends) + 1)
    steps[0, : len(text) + 1] = torch.tensor([*text, layout.text.eot])
    loss = torch.zeros_like(steps, dtype=torch.bool)
    loss[0, : len(text) + 1] = task.writes
    if task.speaks:
        used = pattern.num_steps(codes.shape[1])
        steps[1:, :used] = layout.to_ids(pattern.interleave(codes[None])[0], pattern.codebooks(used))
        for stream, end in enumerate(ends[1:]):
            steps[1 + stream, end:] = layout.audio[stream].pad
            steps[1 + stream, end] = layout.audio[stream].eoa
        loss[1:, : max(ends[1:]) + 1] = True
    return steps, loss


def make_sample(
    task: Task,
    layout: TokenLayout,
    pattern: Pattern,
    *,
    question: list[int] | None = None,
    audio_frames: int | None = None,
    answer: list[int],
    codes: Tensor | None = None,
) -> Sample:
    """Return a training sample of prompt and answer, with labels shifted so that each position predicts the next step.

    Args:
        question: text ids of a written question.
        audio_frames: number of adapted speech features of a spoken question.
        answer: text ids of the answer.
        codes: codes [K, T] of its speech; None = the task does not speak.
    """
    prompt = make_prompt(task, layout, text=question, audio_frames=audio_frames)
    answer_steps, loss = make_answer(task, layout, pattern, text=answer, codes=codes)
    steps = torch.cat([prompt.steps, answer_steps], dim=1)
    labels = torch.full_like(steps, IGNORE)
    at = prompt.steps.shape[1]
    labels[:, at - 1 : -1] = torch.where(loss, answer_steps, torch.full_like(answer_steps, IGNORE))
    # the last step is left out: it is never fed, since the step after it would lie outside the sample
    return Sample(steps[:, :-1], labels[:, :-1], prompt.audio_frames, TASK_NAMES.index(task.name))


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
