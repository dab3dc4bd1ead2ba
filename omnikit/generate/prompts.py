"""Validation of questions, encoding of their recordings, and embedding of their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omnikit.generate.request import Request
from omnikit.generate.types import BadQuestion
from omnikit.interfaces import Parked
from omnikit.model import AdaptedSpeech, OmniLM
from omnikit.tasks import AUDIO_START, Task, make_prompt


@dataclass(frozen=True)
class EmbeddedPrompt:
    """Embeddings of a prompt; the sequences of its decoding strategy share all positions but the last."""

    embeddings: Tensor
    """Embeddings of all positions but the last [L - 1, D], after those of a conversation that are to be computed."""
    marks: list[Tensor]
    """Token ids [S] at the last position of each sequence, which say which streams are to answer."""
    after: Parked | None = None
    """KV cache of the conversation that the prompt continues; None = it begins a sequence."""


def check_question(model: OmniLM, request: Request) -> None:
    """Check that a question has valid content of the kind that its task requires, without encoding it.

    Raises:
        BadQuestion: the content is missing, empty, not finite, or of another shape or vocabulary than the model's.
    """
    question, task = request.question, request.task
    if task.given == "text":
        _check_text(model, task, question.text)
    elif question.features is not None:
        _check_features(model, question.features)
    else:
        _check_wav(task, question.wav)


def _check_text(model: OmniLM, task: Task, text: list[int] | None) -> None:
    if text is None:
        raise BadQuestion(f"task {task.name}: is given text, the question has none")
    if not text:
        raise BadQuestion("question: an empty text")
    # on a GPU an id outside the embedding table would end the process
    if wrong := [i for i in text if not 0 <= i < model.layout.text_vocab]:
        raise BadQuestion(f"question: text id {wrong[0]} is outside of 0..{model.layout.text_vocab - 1}")


def _check_features(model: OmniLM, features: Tensor) -> None:
    if features.dim() != 2 or features.shape[1] != model.encoder.dim:
        shape, own = list(features.shape), f"[T, {model.encoder.dim}]"
        raise BadQuestion(f"question: features {shape} are not of the system's encoder, which computes {own}")
    if not features.shape[0]:
        raise BadQuestion("question: no features")
    _check_finite(features)


def _check_wav(task: Task, wav: Tensor | None) -> None:
    if wav is None:
        raise BadQuestion(f"task {task.name}: is given speech, the question has none")
    if not isinstance(wav, Tensor) or wav.dim() != 1 or not wav.is_floating_point():
        about = f"{wav.dtype} {list(wav.shape)}" if isinstance(wav, Tensor) else type(wav).__name__
        raise BadQuestion(f"question: a waveform must be a tensor [N] of floating-point samples, not {about}")
    if not wav.shape[0]:
        raise BadQuestion("question: a recording without samples")
    _check_finite(wav)


def _check_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise BadQuestion("question: holds values that are not finite")


def encode(model: OmniLM, wavs: Sequence[Tensor]) -> list[Tensor]:
    """Encode waveforms [N] at the encoder's sample rate in one batch; return the features [T, D] of each.

    Raises:
        ValueError: the encoder refuses one of the waveforms.
    """
    lengths = torch.tensor([wav.shape[0] for wav in wavs], device=model.device)
    padded = pad_sequence([wav.to(model.device, torch.float32) for wav in wavs], batch_first=True)
    features, frames = model.encoder(padded, lengths)
    return [features[b, :count] for b, count in enumerate(frames.tolist())]


def embed_prompt(model: OmniLM, request: Request, features: Tensor | None) -> EmbeddedPrompt:
    """Embed the prompt of a request, and lower its step limit to the number of positions that are left for its answer.

    Args:
        features: encoder features [T, D] of a spoken question; None = the question is text.

    Raises:
        BadQuestion: the prompt is longer than the maximum number of positions of backbone or conversation.
    """
    speech = None if features is None else _adapt(model, features)
    frames = None if speech is None else speech.features.shape[1]
    steps = make_prompt(request.task, model.layout, text=request.question.text, audio_frames=frames).steps
    history, length = request.history, steps.shape[1]
    longest = model.llm.max_positions if history is None else history.max_positions
    if longest is not None and length > longest:
        owner = "backbone" if longest == model.llm.max_positions else "conversation"
        raise BadQuestion(f"question: a prompt of {length} positions; the {owner} has {longest}")
    tasks = request.strategy.sequence_tasks(request.task)
    marks = [model.layout.marks(text=task.text_mark, audio=task.speaks) for task in tasks]
    prompt = EmbeddedPrompt(model.embed(steps[None, :, :-1].to(model.device), speech)[0], marks)
    before = None
    if history is not None:
        before = history.begin(request.turn, steps, speech, request.max_steps)
        prompt = EmbeddedPrompt(torch.cat([*before.embeddings, prompt.embeddings]), marks, before.parked)
    request.note_prompt(length, before)
    if longest is not None:  # the first decode step feeds the last position of the prompt
        request.max_steps = min(request.max_steps, longest - length - (0 if before is None else before.length) + 1)
    return prompt


def _adapt(model: OmniLM, features: Tensor) -> AdaptedSpeech:
    """Run the adapter on encoder features [T, D], and return its output as the speech in a batch of one prompt."""
    lengths = torch.tensor([len(features)], device=model.device)
    adapted, lengths = model.adapter(features[None].to(model.device, model.dtype), lengths)
    starts = torch.full_like(lengths, AUDIO_START)
    return AdaptedSpeech(adapted[:, : int(lengths[0])], lengths, starts)
