"""Next-token cross-entropy of each stream, computed only at positions that have labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from omnikit.model import Hidden, OmniLM
from omnikit.tokens import IGNORE

_POSITIONS = 64  # padded to a multiple: few distinct shapes are faster, see `omnikit.data.collate`


class StreamLosses(NamedTuple):
    """Summed cross-entropy of each stream and the number of labels that it covers.

    A stream without labels has the count 0 and the sum 0, so a NaN always indicates an error.
    """

    sums: Tensor  # [S], nats
    counts: Tensor  # [S], labels

    def means(self) -> Tensor:
        """Return the mean cross-entropy of each stream [S], 0 for a stream without labels."""
        return self.sums / self.counts.clamp(min=1)


class StreamLogits(NamedTuple):
    """Logits of each stream at the labelled positions, with their labels."""

    logits: list[Tensor | None]  # S of [P, V], V the ids of the stream; None for a stream without any label
    labels: list[Tensor]  # S of [P], `IGNORE` where the stream has no label


TokenLoss = Callable[[Tensor, Tensor], Tensor]
"""Function from float32 logits [P, V] and labels [P] of one stream to the sum of its losses in nats."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy of logits [P, V] at the positions whose label [P] is not `IGNORE`."""
    return nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")


def stream_logits(model: OmniLM, hidden: Hidden, labels: Tensor) -> StreamLogits:
    """Return the logits and labels of each stream at the labelled positions of labels [B, S, L].

    The text head is computed where the text stream has a label, the audio head where any audio stream has one.
    """
    text, audio = labels[:, :1], labels[:, 1:]
    logits = [model.text_logits(_labelled(hidden.text, text)), *model.audio_logits(_labelled(hidden.audio, audio))]
    wanted = [*_kept(text), *_kept(audio)]
    labelled = [(label != IGNORE).any() for label in wanted]
    return StreamLogits([one if some else None for one, some in zip(logits, labelled, strict=True)], wanted)


def sum_losses(predictions: StreamLogits, token_loss: TokenLoss = cross_entropy) -> StreamLosses:
    """Return the sum of a loss over the labels of each stream, and the number of labels.

    The sum of a stream without labels is a constant 0: the optimiser skips weights without a gradient, but would apply
    weight decay to those with a zero gradient.
    """
    sums = [
        token_loss(logits.float(), labels) if logits is not None else torch.zeros((), device=labels.device)
        for logits, labels in zip(*predictions, strict=True)
    ]
    return StreamLosses(torch.stack(sums), torch.stack([(labels != IGNORE).sum() for labels in predictions.labels]))


def stream_losses(model: OmniLM, hidden: Hidden, labels: Tensor) -> StreamLosses:
    """Return the summed cross-entropy of each stream for hidden states [B, L, D] and labels [B, S, L]."""
    return sum_losses(stream_logits(model, hidden, labels))


def weighted_mean(losses: StreamLosses, weights: Tensor) -> Tensor:
    """Return the mean of the streams' mean losses weighted by [S]; streams without labels are ignored."""
    weights = weights * (losses.counts > 0)
    return (losses.means() * weights).sum() / weights.sum().clamp(min=1e-8)


def _any_label(labels: Tensor) -> Tensor:
    return (labels != IGNORE).any(dim=1)


def _labelled(hidden: Tensor, labels: Tensor) -> Tensor:
    """Select hidden states [B, L, D] where any stream has a label, zero-padded to a multiple [P, D]."""
    found = hidden[_any_label(labels)]
    return nn.functional.pad(found, (0, 0, 0, -len(found) % _POSITIONS))


def _kept(labels: Tensor) -> Tensor:
    """Select labels [B, s, L] where any stream has a label, padded with `IGNORE` to a multiple [s, P]."""
    found = labels.transpose(1, 2)[_any_label(labels)].T
    return nn.functional.pad(found, (0, -found.shape[1] % _POSITIONS), value=IGNORE)
