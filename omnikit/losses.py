"""Training loss: next-token cross-entropy of each stream.

To train with another loss, edit `token_loss` or `compute_objectives` in the `train.py` of a recipe, which calls these
functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from omnikit.model import Hidden, OmniLM
from omnikit.tokens import IGNORE

_POSITIONS = 64  # logits are computed for a multiple of it, so that few shapes occur, see `omnikit.data.collate`


class StreamLosses(NamedTuple):
    """Summed cross-entropy of each stream and the number of labels that it covers.

    A stream without labels has the count 0, so a loss that is NaN can only mean that something went wrong.
    """

    sums: Tensor  # [S], nats
    counts: Tensor  # [S], labels

    def means(self) -> Tensor:
        """Return the mean cross-entropy of each stream [S] in nats, 0 for a stream without labels."""
        return self.sums / self.counts.clamp(min=1)


class StreamLogits(NamedTuple):
    """Logits of each stream at the labelled positions, with their labels."""

    logits: list[Tensor | None]  # S of [P, V], V the ids of the stream; None for a stream without any label
    labels: list[Tensor]  # S of [P], `IGNORE` where the stream has no label


TokenLoss = Callable[[Tensor, Tensor], Tensor]
"""Type of a function from logits [P, V] in float32 and labels [P] of one stream to the sum of its losses."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy of logits [P, V] in nats over the positions whose label [P] is not `IGNORE`."""
    return nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")


def stream_logits(model: OmniLM, hidden: Hidden, labels: Tensor) -> StreamLogits:
    """Compute the logits of each stream from hidden states [B, L, D] at the positions with labels [B, S, L].

    The text head runs only where the text stream has a label, the audio heads only where some audio stream has one.
    """
    text, audio = labels[:, :1], labels[:, 1:]
    normed_text, normed_audio = _gather_hidden(hidden.text, text), _gather_hidden(hidden.audio, audio)
    logits = [model.text_logits(normed_text), *model.audio_logits(normed_audio)]
    wanted = [*_gather_labels(text), *_gather_labels(audio)]
    labelled = [(label != IGNORE).any() for label in wanted]
    return StreamLogits([one if some else None for one, some in zip(logits, labelled, strict=True)], wanted)


def sum_losses(predictions: StreamLogits, token_loss: TokenLoss = cross_entropy) -> StreamLosses:
    """Return the loss summed over the labels of each stream, and each stream's number of labels.

    The sum of a stream without labels is a constant 0: the optimiser skips weights that have no gradient, but would
    apply weight decay to those with a zero gradient.
    """
    sums = [
        token_loss(logits.float(), labels) if logits is not None else torch.zeros((), device=labels.device)
        for logits, labels in zip(*predictions, strict=True)
    ]
    return StreamLosses(torch.stack(sums), torch.stack([(labels != IGNORE).sum() for labels in predictions.labels]))


def stream_losses(model: OmniLM, hidden: Hidden, labels: Tensor) -> StreamLosses:
    """Compute the summed cross-entropy of each stream from hidden states [B, L, D] against labels [B, S, L]."""
    return sum_losses(stream_logits(model, hidden, labels))


def weighted_mean(losses: StreamLosses, weights: Tensor) -> Tensor:
    """Return the mean of the streams' mean losses, weighted by `weights` [S]; streams without labels are ignored."""
    weights = weights * (losses.counts > 0)
    return (losses.means() * weights).sum() / weights.sum().clamp(min=1e-8)


def _any_label(labels: Tensor) -> Tensor:
    return (labels != IGNORE).any(dim=1)


def _gather_hidden(hidden: Tensor, labels: Tensor) -> Tensor:
    """Return the hidden states [P, D] of the positions at which any stream has a label, padded with zeros."""
    found = hidden[_any_label(labels)]
    return nn.functional.pad(found, (0, 0, 0, -len(found) % _POSITIONS))


def _gather_labels(labels: Tensor) -> Tensor:
    """Return the labels [s, P] of the positions at which any of s streams has a label, padded with `IGNORE`."""
    found = labels.transpose(1, 2)[_any_label(labels)].T
    return nn.functional.pad(found, (0, -found.shape[1] % _POSITIONS), value=IGNORE)
