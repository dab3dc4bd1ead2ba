"""Baseline of benchmarks/train_step.py: forward pass and loss before logits were computed in chunks.

This is a frozen, minimal copy of the code of that time. It stores all logits of the labelled positions, concatenates
them by a copy, and synchronises with the device to find these positions.

Letters: B batch, T frames, D width, S streams, L steps, V vocabulary, P labelled positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

IGNORE = -100
AUDIO_START = 1
POSITIONS = 64  # labelled positions are padded to a multiple


class Heads(NamedTuple):
    """Linear layers from hidden states to logits, with the number of ids of each stream."""

    text: tuple[nn.Linear, ...]
    audio: nn.Linear
    sizes: tuple[int, ...]

    def text_logits(self, hidden: Tensor) -> Tensor:
        return torch.cat([head(hidden) for head in self.text], dim=-1)

    def audio_logits(self, hidden: Tensor) -> list[Tensor]:
        return list(self.audio(hidden).split(self.sizes[1:], dim=-1))


def earlier_loss(heads: Heads, text: Tensor, audio: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the mean loss over streams, weighted by [S], of hidden states [B, L, D] with labels [B, S, L]."""
    of_text, of_audio = labels[:, :1], labels[:, 1:]
    logits = [heads.text_logits(_labelled(text, of_text)), *heads.audio_logits(_labelled(audio, of_audio))]
    wanted = [*_kept(of_text), *_kept(of_audio)]
    sums = torch.stack([_cross_entropy(one, label) for one, label in zip(logits, wanted, strict=True)])
    counts = torch.stack([(label != IGNORE).sum() for label in wanted])
    weights = weights * (counts > 0)
    return (sums / counts.clamp(min=1) * weights).sum() / weights.sum().clamp(min=1e-8)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if not (labels != IGNORE).any():
        return torch.zeros((), device=logits.device)
    return nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")


def _any_label(labels: Tensor) -> Tensor:
    return (labels != IGNORE).any(dim=1)


def _labelled(hidden: Tensor, labels: Tensor) -> Tensor:
    found = hidden[_any_label(labels)]
    return nn.functional.pad(found, (0, 0, 0, -len(found) % POSITIONS))


def _kept(labels: Tensor) -> Tensor:
    found = labels.transpose(1, 2)[_any_label(labels)].T
    return nn.functional.pad(found, (0, -found.shape[1] % POSITIONS), value=IGNORE)


def earlier_hidden(model: nn.Module, steps: Tensor, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden states [B, L, D] of text and audio heads for steps [B, S, L] and features [B, T, D]."""
    adapted, lengths = model.adapter(features, lengths)
    streams = steps.shape[1]
    audio = model.new_audio_embeddings.embed(steps[:, 1:] + model.audio_offsets).sum(dim=1, dtype=torch.float32)
    at = torch.arange(audio.shape[1], device=audio.device)[None].expand(len(steps), -1) - AUDIO_START
    inside = (at >= 0) & (at < lengths[:, None])
    at = at.clamp(0, adapted.shape[1] - 1)[..., None].expand(-1, -1, audio.shape[2])
    audio = torch.where(inside[..., None], adapted.gather(1, at) * (streams - 1), audio)
    own = model.llm.vocab_size
    known = model.llm.trunk.get_input_embeddings()(steps[:, 0].clamp(max=own - 1))
    new = model.new_text_embeddings.embed((steps[:, 0] - own).clamp(min=0))
    text = torch.where((steps[:, 0] < own)[..., None], known, new)
    embedded = ((text + audio) / streams).to(model.new_text_embeddings.embed.weight.dtype)
    positions = torch.arange(embedded.shape[1], device=embedded.device)[None].expand(len(embedded), -1)
    options = {"position_ids": positions, "attention_mask": None, "use_cache": False}
    trunk = model.llm.trunk(inputs_embeds=embedded, **options).last_hidden_state
    return model.llm.norm(trunk), model.tts_adapter.trunk(inputs_embeds=trunk, **options).last_hidden_state
