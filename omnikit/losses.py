"""Next-token cross-entropy per stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omnikit.model import Hidden, OmniLM
from omnikit.tokens import IGNORE

_POSITIONS = 64  # a multiple of so many is computed: few shapes that come again, see `omnikit.data.collate`


def stream_losses(model: OmniLM, hidden: Hidden, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each stream [S]; NaN for a stream without labels [B, S, L] in this batch.

    Heads are computed only where some stream of their kind has a label.
    """
    losses = [_cross_entropy(model.text_logits(_labelled(hidden.text, labels[:, :1])), _kept(labels[:, :1])[0])]
    wanted = _kept(labels[:, 1:])
    logits = model.audio_logits(_labelled(hidden.audio, labels[:, 1:]))
    losses += [_cross_entropy(one, label) for one, label in zip(logits, wanted, strict=True)]
    return torch.stack(losses)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Losses [S], NaN where absent, and weights [S] -> the weighted mean of those present."""
    present = ~losses.isnan()
    weights = weights * present
    return (losses.nan_to_num() * weights).sum() / weights.sum().clamp(min=1e-8)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if not (labels != IGNORE).any():
        return logits.new_full((), float("nan"))
    return nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE)


def _any_label(labels: Tensor) -> Tensor:
    return (labels != IGNORE).any(dim=1)


def _labelled(hidden: Tensor, labels: Tensor) -> Tensor:
    """Hidden states [B, L, D] at the positions where any of the streams has a label [P, D], then zeros."""
    found = hidden[_any_label(labels)]
    return nn.functional.pad(found, (0, 0, 0, -len(found) % _POSITIONS))


def _kept(labels: Tensor) -> Tensor:
    """Labels [B, s, L] -> those of the labelled positions [s, P], none where there are zeros."""
    found = labels.transpose(1, 2)[_any_label(labels)].T
    return nn.functional.pad(found, (0, -found.shape[1] % _POSITIONS), value=IGNORE)
