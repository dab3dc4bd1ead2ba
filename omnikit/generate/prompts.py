"""From questions to the embeddings of their prompts, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omnikit.generate.request import Request
from omnikit.model import OmniLM, Speech
from omnikit.tasks import AUDIO_START, make_prompt


@dataclass(frozen=True)
class Prompt:
    """A prompt that the strategy's rows share but for its last position."""

    embeddings: Tensor
    """All positions but the last [L - 1, D]."""
    marks: list[Tensor]
    """The last position of each row, its token ids [S]."""


def check_question(model: OmniLM, request: Request) -> None:
    """Refuse a question that cannot be asked.

    Raises:
        ValueError: it is empty, not finite, of another encoder, or not what the task is given.
    """
    question, task = request.question, request.task
    if task.given == "text":
        if question.text is None:
            raise ValueError(f"task {task.name}: is given text, the question has none")
        if not question.text:
            raise ValueError("question: an empty text")
        return
    given = question.wav if question.features is None else question.features
    if given is None:
        raise ValueError(f"task {task.name}: is given speech, the question has none")
    if question.features is not None and (given.dim() != 2 or given.shape[1] != model.encoder.dim):
        shape, own = list(given.shape), f"[T, {model.encoder.dim}]"
        raise ValueError(f"question: features {shape} are not of the system's encoder, which makes {own}")
    if not given.shape[0]:
        raise ValueError(f"question: {'no features' if question.wav is None else 'a recording without samples'}")
    if not bool(torch.isfinite(given).all()):
        raise ValueError("question: holds values that are not finite")


def encode(model: OmniLM, wavs: Sequence[Tensor]) -> list[Tensor]:
    """Waveforms [N] at the encoder's rate -> encoder features [T, D] of each, computed as one batch.

    Raises:
        ValueError: the encoder refuses one of them.
    """
    lengths = torch.tensor([wav.shape[0] for wav in wavs], device=model.device)
    features, frames = model.encoder(pad_sequence([wav.to(model.device) for wav in wavs], batch_first=True), lengths)
    return [features[b, :count] for b, count in enumerate(frames.tolist())]


def make_prompt_of(model: OmniLM, request: Request, features: Tensor | None) -> Prompt:
    """The prompt of a request; `features` [T, D] of the encoder where its question is speech.

    Raises:
        ValueError: it is longer than the backbone's positions.
    """
    speech = None if features is None else _adapt(model, features)
    frames = None if speech is None else speech.features.shape[1]
    steps = make_prompt(request.task, model.layout, text=request.question.text, audio_frames=frames).steps
    longest = model.llm.max_positions
    if longest is not None and steps.shape[1] > longest:
        raise ValueError(f"question: a prompt of {steps.shape[1]} positions; the backbone has {longest}")
    tasks = request.strategy.row_tasks(request.task)
    marks = [model.layout.marks(text=task.text_mark, audio=task.speaks) for task in tasks]
    return Prompt(model.embed(steps[None, :, :-1].to(model.device), speech)[0], marks)


def _adapt(model: OmniLM, features: Tensor) -> Speech:
    """Encoder features [T, D] -> the speech of one prompt."""
    lengths = torch.tensor([len(features)], device=model.device)
    adapted, lengths = model.adapter(features[None].to(model.device, model.dtype), lengths)
    starts = torch.full_like(lengths, AUDIO_START)
    return Speech(adapted[:, : int(lengths[0])], lengths, starts)
