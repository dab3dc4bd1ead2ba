"""Training objective: next-token cross-entropy, normalised over all labels of an optimiser step.

    hidden states [B, L, D] -> at the labelled positions, chunk by chunk: logits -> loss of each label [P, S]
    labels of the whole optimiser step [tasks, S] -> weight of one label [tasks, S]
    sum of losses x weights = this batch's part of the objective, and of its gradient

A label's weight does not depend on the batch that it is in, so the parts of all batches and processes add up to the
objective that one batch of the whole step would have. Logits are the largest tensors of a training step; those of a
chunk are gone before the next one's are computed.

To train with another loss, replace `token_loss` in the `train.py` of a recipe, see recipes/README.md.

Letters: B batch, L steps, D width, P labelled positions, S streams, V ids of a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omnikit.label_positions import LabelPositions, label_positions
from omnikit.linear_cross_entropy import Head, chunk_rows, linear_cross_entropy
from omnikit.model import Hidden, OmniLM
from omnikit.tokens import IGNORE

LABELS, TASKS = "labels", "tasks"
NORMALIZATIONS = (LABELS, TASKS)
"""Choices of `loss_normalization`: labels of a stream count alike, or tasks count by their shares."""

TokenLoss = Callable[[Tensor, Tensor], Tensor]
"""Type of a deterministic function from logits [P, V] in float32 and labels [P] of one stream to the losses [P].

A label may be `IGNORE`; the loss that is returned for it is ignored."""


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy [P] of logits [P, V] in nats, 0 where the label [P] is `IGNORE`."""
    options = {"ignore_index": IGNORE, "reduction": "none", "label_smoothing": label_smoothing}
    return nn.functional.cross_entropy(logits, labels, **options)


class StreamLosses(NamedTuple):
    """Sum of the losses and number of labels of each task and stream, without gradient, for logs and guards.

    A stream without labels has the count 0, so a loss that is NaN can only mean that something went wrong.
    """

    sums: Tensor  # [tasks, S], nats
    counts: Tensor  # [tasks, S], labels

    def means(self) -> Tensor:
        """Return the mean loss of each stream [S] in nats over all tasks, 0 for a stream without labels."""
        return self.sums.sum(dim=0) / self.counts.sum(dim=0).clamp(min=1)

    def objective(self, stream_weights: Tensor, shares: Tensor | None = None) -> Tensor:
        """Return the objective of these labels as if they were a whole optimiser step; see `label_weights`."""
        return (self.sums * label_weights(self.counts, stream_weights, shares)).sum()


class Labelled(Protocol):
    """Label positions of the text stream and of the audio streams, as a `Batch` has them."""

    text: LabelPositions
    audio: LabelPositions


class StreamLabels(NamedTuple):
    """Label positions of the text stream and of the audio streams, found in labels that are not those of a `Batch`."""

    text: LabelPositions
    audio: LabelPositions

    @staticmethod
    def of(labels: Tensor, tasks: Tensor | None = None) -> StreamLabels:
        """Find the positions of labels [B, S, L]; `tasks` [B] are the numbers of the samples' tasks, None = all 0."""
        return StreamLabels(label_positions(labels[:, :1], tasks), label_positions(labels[:, 1:], tasks))


def label_weights(step_labels: Tensor, stream_weights: Tensor, shares: Tensor | None = None) -> Tensor:
    """Return the weight in the objective of one label of each task and stream [tasks, S].

    With n_ts labels of task t in stream s in the optimiser step, stream weights w_s, and sums over the streams and
    tasks that have labels:

        without shares   weight_ts = w_s / (sum of w) / (n_s = sum over t of n_ts)
        with shares p_t  weight_ts = p_t / (sum of p) x w_s / (sum of w over the streams of task t) / n_ts

    So the objective is the weighted mean over streams of the mean loss of all their labels; or the weighted mean over
    tasks, by their shares, of each task's weighted mean over its streams. The weights of all labels sum to 1.

    Args:
        step_labels: number of labels of the whole optimiser step, over all its batches and processes [tasks, S].
        stream_weights: weights of the streams [S].
        shares: weights of the tasks [tasks]; None = labels of a stream count alike, whatever their task.
    """
    if shares is None:
        counts = step_labels.sum(dim=0, keepdim=True)
        return (_shared(stream_weights * (counts > 0)) / counts.clamp(min=1)).expand_as(step_labels)
    by_stream = _shared(stream_weights * (step_labels > 0))
    by_task = _shared((shares * (by_stream.sum(dim=1) > 0))[None])[0]
    return by_task[:, None] * by_stream / step_labels.clamp(min=1)


def _shared(weights: Tensor) -> Tensor:
    """Divide weights [.., n] by their sum over n; rows whose sum is 0 stay 0."""
    total = weights.sum(dim=-1, keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)


def stream_losses(
    model: OmniLM,
    hidden: Hidden,
    labels: Labelled,
    weights: Tensor,
    token_loss: TokenLoss = cross_entropy,
    *,
    chunk_bytes: int | None = None,
    compiled: bool = False,
) -> tuple[Tensor, StreamLosses]:
    """Compute a batch's part of the objective from hidden states [B, L, D], without storing all logits at once.

    Nothing is copied from the device. Streams that share a head get no gradient if none of them has a label in the
    batch; the total has no gradient at all if there is none. An optimiser leaves weights without a gradient as they
    are, but would apply weight decay to those with a zero gradient.

    Args:
        labels: the batch, or another source of label positions.
        weights: weight of one label of each task and stream [tasks, S], see `label_weights`.
        token_loss: loss of each label. That of `cross_entropy` computes gradients in the forward pass; for any other
            function, logits are computed a second time in the backward pass.
        chunk_bytes: maximum size of a chunk's float32 logits in bytes, see `omnikit.linear_cross_entropy`.
        compiled: whether torch compiles the loss of `cross_entropy` where gradients are computed, see
            `omnikit.linear_cross_entropy`.

    Returns:
        The weighted sum of the losses [], and the losses by task and stream.
    """
    sizes = model.layout.sizes
    groups = (
        (hidden.text, labels.text, sizes[:1], slice(0, 1), _text_heads(model), lambda h: [model.text_logits(h)]),
        (hidden.audio, labels.audio, sizes[1:], slice(1, None), _audio_heads(model), model.audio_logits),
    )
    compiled = compiled and torch.is_grad_enabled()
    totals, sums, counts = [], [], []
    for states, found, ids, streams, heads, logits in groups:
        options = {"weights": weights[:, streams][found.tasks], "sizes": ids, "chunk_bytes": chunk_bytes}
        states = states.flatten(0, 1)
        if token_loss is cross_entropy and heads is not None:
            where = states, heads, found.positions, found.labels
            total, losses = linear_cross_entropy(*where, **options, compiled=compiled)
        else:
            total, losses = _recomputed(states, logits, found, token_loss, **options)
        totals.append(total)
        sums.append(_by_task(found, losses, len(weights)))
        counts.append(_by_task(found, torch.ones_like(found.labels), len(weights)))
    return totals[0] + totals[1], StreamLosses(torch.cat(sums, dim=1), torch.cat(counts, dim=1))


def step_loss(model: OmniLM, hidden: Hidden, labels: Tensor, stream_weights: Tensor | None = None) -> Tensor:
    """Return the objective of labels [B, S, L] that are an optimiser step of their own, from hidden states [B, L, D].

    Args:
        stream_weights: weights of the streams [S]; None = all alike.
    """
    found = StreamLabels.of(labels)
    counts = torch.cat([found.text.counts, found.audio.counts])[None]
    weights = torch.ones(counts.shape[1], device=labels.device) if stream_weights is None else stream_weights
    return stream_losses(model, hidden, found, label_weights(counts, weights))[0]


def _text_heads(model: OmniLM) -> list[Head] | None:
    known = model.llm.linear_head()
    return None if known is None else [known, Head(model.new_text_embeddings.head.weight)]


def _audio_heads(model: OmniLM) -> list[Head]:
    return [Head(model.new_audio_embeddings.head.weight)]


def _by_task(found: LabelPositions, values: Tensor, tasks: int) -> Tensor:
    """Sum values [P, s] of the labels by task [tasks, s]; positions without a label are left out.

    There is no atomic addition, whose order on a GPU, and with it the rounding, differs from run to run.
    """
    of_task = found.tasks[:, None] == torch.arange(tasks, device=values.device)
    chosen = of_task[:, :, None] & (found.labels != IGNORE)[:, None]
    return torch.where(chosen, values.detach()[:, None], 0).sum(dim=0)


def _recomputed(
    hidden: Tensor,
    logits: Callable[[Tensor], Sequence[Tensor]],
    found: LabelPositions,
    token_loss: TokenLoss,
    *,
    weights: Tensor,
    sizes: Sequence[int],
    chunk_bytes: int | None,
) -> tuple[Tensor, Tensor]:
    """Compute the weighted total [] and the losses [P, s] of any loss function; the backward pass repeats each chunk.

    Args:
        hidden: normed hidden states [N, D].
        logits: function from hidden states [C, D] to the logits [C, V] of each of the s streams.
        weights: weight of each label [P, s].
        sizes: number of ids of each stream.
    """

    def losses_of(rows: Tensor, labels: Tensor) -> Tensor:
        pairs = zip(logits(rows), labels.unbind(1), strict=True)
        losses = torch.stack([token_loss(one.float(), label) for one, label in pairs], dim=1)
        return losses.masked_fill(labels == IGNORE, 0.0)

    if not len(found.positions):
        losses = hidden.new_zeros(found.labels.shape, dtype=torch.float32)
        return losses.sum(), losses
    rows = chunk_rows(len(found.positions), sum(sizes), hidden.device, chunk_bytes)
    chunks = zip(found.positions.split(rows), found.labels.split(rows), strict=True)
    losses = torch.cat([
        checkpoint(losses_of, hidden.index_select(0, some), labels, use_reentrant=False, preserve_rng_state=False)
        for some, labels in chunks
    ])  # fmt: skip
    return (losses * weights).sum(), losses
