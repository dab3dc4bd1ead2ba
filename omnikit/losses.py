"""Next-token cross-entropy per stream."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from omnikit.model import Hidden, OmniLM
from omnikit.tokens import IGNORE

_POSITIONS = 64  # a multiple of so many is computed: few shapes that come again, see `omnikit.data.collate`


class StreamLosses(NamedTuple):
    """Summed cross-entropy of each stream and the number of labels that it covers.

    A stream without labels has the count 0, so a loss that is NaN can only mean that something went wrong. A tuple,
    because DistributedDataParallel looks for tensors in what a module returns.
    """

    sums: Tensor  # [S], nats
    counts: Tensor  # [S], labels

    def means(self) -> Tensor:
        """Return the mean cross-entropy of each stream [S], 0 for a stream without labels."""
        return self.sums / self.counts.clamp(min=1)


def stream_losses(model: OmniLM, hidden: Hidden, labels: Tensor) -> StreamLosses:
    """Compute the cross-entropy of each stream against labels [B, S, L].

    Heads are computed only where some stream of their kind has a label.
    """
    text, audio = labels[:, :1], labels[:, 1:]
    logits = [model.text_logits(_labelled(hidden.text, text)), *model.audio_logits(_labelled(hidden.audio, audio))]
    wanted = [*_kept(text), *_kept(audio)]
    sums = [_cross_entropy(one, label) for one, label in zip(logits, wanted, strict=True)]
    return StreamLosses(torch.stack(sums), torch.stack([(label != IGNORE).sum() for label in wanted]))


def weighted_mean(losses: StreamLosses, weights: Tensor) -> Tensor:
    """Return the mean of the streams' mean losses by weights [S]; streams without labels do not take part."""
    weights = weights * (losses.counts > 0)
    return (losses.means() * weights).sum() / weights.sum().clamp(min=1e-8)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [P, V] and labels [P] -> the sum over the positions that have a label.

    Without any it is a plain 0: the optimiser skips weights that have no gradient, but would decay those with zeros.
    """
    if not (labels != IGNORE).any():
        return torch.zeros((), device=logits.device)
    return nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")


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
