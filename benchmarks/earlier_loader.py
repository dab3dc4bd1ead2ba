"""Baseline of benchmarks/loader.py: how samples and batches were made before this was done with NumPy.

This is a frozen, minimal copy of the code of that time. It tokenizes each text again, asks the pattern for the codebook
of every step, builds each sample from many small tensors, and pads features as float32, twice.

Letters: B batch, T frames, D width, K codebooks, S streams, L steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

IGNORE = -100
STEPS, FRAMES, POSITIONS = 8, 32, 64  # multiples to which steps, frames and labelled positions are padded


class EarlierSample(NamedTuple):
    """A training sample: steps and labels [S, L], and the number of the task."""

    steps: Tensor
    labels: Tensor
    task: int


class EarlierBatch(NamedTuple):
    """A batch of B padded samples."""

    steps: Tensor  # [B, S, L]
    labels: Tensor  # [B, S, L]
    features: Tensor  # [B, T, D]
    lengths: Tensor  # [B]
    wav: Tensor  # [B, N]
    samples: Tensor  # [B]
    text: tuple[Tensor, ...]
    audio: tuple[Tensor, ...]
    step_labels: Tensor  # [tasks, S]


def earlier_item(model: Any, entry: Any, task: Any, number: int) -> tuple[EarlierSample, Tensor | None]:
    """Return the training sample of a manifest entry for a task of a given number, and its features [T, D]."""
    encode = model.llm.tokenizer.encode
    features = entry.features.load() if task.given == "speech" else None
    frames = None if features is None else model.num_speech_positions(len(features))
    sample = earlier_sample(
        model.layout, model.pattern, task, number,
        question=encode(entry.t1) if task.given == "text" else None,
        audio_frames=frames,
        answer=encode(entry.target_text(task)),
        codes=entry.target_codes(task).load() if task.speaks else None,
    )  # fmt: skip
    return sample, features


def earlier_sample(
    layout: Any,
    pattern: Any,
    task: Any,
    number: int,
    *,
    question: list[int] | None = None,
    audio_frames: int | None = None,
    answer: list[int],
    codes: Tensor | None = None,
) -> EarlierSample:
    """Return the training sample of a task of a given number, with labels that are shifted by one step."""
    prompt = _prompt(task, layout, question, audio_frames)
    answered, loss = _answer(task, layout, pattern, answer, None if codes is None else codes.long())
    steps = torch.cat([prompt, answered], dim=1)
    labels = torch.full_like(steps, IGNORE)
    at = prompt.shape[1]
    labels[:, at - 1 : -1] = torch.where(loss, answered, torch.full_like(answered, IGNORE))
    return EarlierSample(steps[:, :-1], labels[:, :-1], number)


def earlier_collate(
    samples: list[EarlierSample], features: list[Tensor | None], layout: Any, dim: int, tasks: int
) -> EarlierBatch:
    """Pad samples and their features on the right to a batch; `tasks` is the number of all tasks."""
    longest = max(s.steps.shape[1] for s in samples)
    longest += -longest % STEPS
    steps = _row(layout, "pad", "pad")[None, :, None].repeat(len(samples), 1, longest)
    labels = torch.full_like(steps, IGNORE)
    for b, sample in enumerate(samples):
        steps[b, :, : sample.steps.shape[1]] = sample.steps
        labels[b, :, : sample.labels.shape[1]] = sample.labels
    given = [torch.zeros(0, dim) if f is None else f.float() for f in features]
    lengths = torch.tensor([f.shape[0] for f in given])
    padded = pad_sequence(given, batch_first=True)
    padded = nn.functional.pad(padded, (0, 0, 0, -padded.shape[1] % FRAMES))
    recorded = [torch.zeros(0)] * len(samples)
    counts = torch.tensor([len(wav) for wav in recorded])
    numbers = torch.tensor([sample.task for sample in samples])
    return EarlierBatch(
        steps, labels, padded, lengths, pad_sequence(recorded, batch_first=True), counts,
        _positions(labels[:, :1], numbers), _positions(labels[:, 1:], numbers),
        labels.new_zeros(tasks, labels.shape[1]).index_add(0, numbers, (labels != IGNORE).sum(dim=2)),
    )  # fmt: skip


def _prompt(task: Any, layout: Any, text: list[int] | None, frames: int | None) -> Tensor:
    pads = _row(layout, "pad", "pad")
    if task.given == "speech":
        middle = pads[:, None].repeat(1, frames)
    else:
        middle = pads[:, None].repeat(1, len(text))
        middle[0] = torch.tensor(text, dtype=torch.long)
    speech = task.given == "speech"
    begin, end = _row(layout, "input", "input" if speech else "pad"), _row(layout, "eot", "eoa" if speech else "pad")
    marks = _row(layout, task.text_mark, "answer" if task.speaks else "pad")
    return torch.cat([begin[:, None], middle, end[:, None], marks[:, None]], dim=1)


def _answer(task: Any, layout: Any, pattern: Any, text: list[int], codes: Tensor | None) -> tuple[Tensor, Tensor]:
    streams = range(len(pattern.carries))
    ends = [len(text), *([pattern.end(stream, codes.shape[1]) for stream in streams] if task.speaks else [])]
    steps = _row(layout, "pad", "pad")[:, None].repeat(1, max(ends) + 1)
    steps[0, : len(text) + 1] = torch.tensor([*text, layout.text.eot])
    loss = torch.zeros_like(steps, dtype=torch.bool)
    loss[0, : len(text) + 1] = task.writes
    if task.speaks:
        used = pattern.num_steps(codes.shape[1])
        steps[1:, :used] = _ids(layout, _interleaved(pattern, codes[None])[0], _codebooks(pattern, used))
        for stream, end in enumerate(ends[1:]):
            steps[1 + stream, end:] = layout.audio[stream].pad
            steps[1 + stream, end] = layout.audio[stream].eoa
        loss[1:, : max(ends[1:]) + 1] = True
    return steps, loss


def _row(layout: Any, text: str, audio: str) -> Tensor:
    return torch.tensor([getattr(layout.text, text), *(getattr(ids, audio) for ids in layout.audio)])


def _codebooks(pattern: Any, steps: int) -> Tensor:
    table = [_codebook_at(pattern, step) for step in range(steps)]
    return torch.tensor(table, dtype=torch.long).reshape(steps, len(pattern.carries)).T


def _codebook_at(pattern: Any, step: int) -> list[int]:
    found = [-1] * len(pattern.carries)
    for k, (stream, start) in enumerate(zip(pattern.stream_of, pattern.start, strict=True)):
        if step >= start and (step - start) % pattern.stride == 0:
            found[stream] = k
    return found


def _interleaved(pattern: Any, frames: Tensor) -> Tensor:
    count = frames.shape[-1]
    steps = frames.new_full((frames.shape[0], len(pattern.carries), pattern.num_steps(count)), -1)
    streams = torch.tensor(pattern.stream_of)[:, None].expand(-1, count)
    start = torch.tensor(pattern.start)
    steps[:, streams, start[:, None] + pattern.stride * torch.arange(count)] = frames
    return steps


def _ids(layout: Any, codes: Tensor, codebooks: Tensor) -> Tensor:
    known = codebooks.clamp(min=0)
    streams = torch.arange(len(known))[:, None].expand_as(known)
    offsets = layout._places[streams, known] * layout.codebook_size
    return torch.where(codebooks < 0, _row(layout, "pad", "pad")[1:, None], codes + offsets)


def _positions(labels: Tensor, tasks: Tensor) -> tuple[Tensor, ...]:
    by_position = labels.transpose(1, 2).flatten(0, 1)
    found = (by_position != IGNORE).any(dim=1).nonzero()[:, 0]
    missing = -len(found) % POSITIONS
    return (
        nn.functional.pad(found, (0, missing)),
        nn.functional.pad(by_position[found], (0, 0, 0, missing), value=IGNORE),
        torch.count_nonzero(by_position != IGNORE, dim=0),
        nn.functional.pad(tasks[found // labels.shape[2]], (0, missing)),
    )
