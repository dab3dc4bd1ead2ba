"""Cross-entropy of linear heads that computes logits for one chunk of positions at a time.

    hidden [N, D] -> at the labelled positions, chunk by chunk: [C, D] -> logits [C, V] -> loss, gradients

Logits are by far the largest tensors of a training step, and are needed only for the loss and two matrix products. So
the gradients of hidden states and heads are computed together with the loss, while a chunk's logits exist; the backward
pass multiplies them by the gradient of the loss.

Letters: N positions of a batch, P labelled positions, C positions of a chunk, D width, S streams, V ids of all streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from omnikit.label_positions import MULTIPLE
from omnikit.tokens import IGNORE

CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Maximum size of a chunk's float32 logits in bytes, by device type.

Each chunk accumulates into the gradients of all head weights, a fixed cost that weighs more on a GPU, so its chunks are
larger."""


class Head(NamedTuple):
    """A linear layer from normed hidden states to the logits of some ids."""

    weight: Tensor  # [V, D]
    bias: Tensor | None = None  # [V]
    finish: Callable[[Tensor], Tensor] | None = None
    """Differentiable element-wise function that is applied to the logits [C, V], such as a soft cap."""


class ChunkedLoss(NamedTuple):
    """Cross-entropy of all labels: the weighted total to minimise, and the loss of each label to report."""

    total: Tensor  # [], weighted sum of the losses
    losses: Tensor  # [P, S], nats, without gradient; 0 where there is no label


def linear_cross_entropy(
    hidden: Tensor,
    heads: Sequence[Head],
    positions: Tensor,
    labels: Tensor,
    *,
    weights: Tensor,
    sizes: Sequence[int],
    chunk_bytes: int | None = None,
    compiled: bool = False,
) -> ChunkedLoss:
    """Compute the cross-entropy of linear heads at labelled positions, without storing all logits at once.

    The logits of the heads are concatenated and split into streams by `sizes`. Nothing is copied from the device. Under
    autocast, products are computed in its type and everything else in float32, as in the plain computation.

    Args:
        hidden: normed hidden states [N, D].
        heads: linear heads; frozen ones get no gradient.
        positions: rows of `hidden` that have a label [P], see `omnikit.label_positions`. If P is 0, the total has no
            gradient, so that an optimiser does not change the heads.
        labels: ids within their streams [P, S], `IGNORE` where a stream has no label.
        weights: weight of each label's loss in the total [P, S], or a shape that broadcasts to it, such as [S];
            float32. They cannot be applied later, because the backward pass has no logits.
        sizes: number of ids of each stream; they sum to V, the number of rows of all heads.
        chunk_bytes: maximum size of a chunk's float32 logits in bytes; the default depends on the device, see
            `CHUNK_BYTES`.
        compiled: whether torch compiles the operations between the products, which takes seconds at the first call.
    """
    if not len(positions):
        losses = hidden.new_zeros(labels.shape, dtype=_exact(hidden.dtype))
        return ChunkedLoss(losses.sum(), losses)
    device = hidden.device.type
    plan = _Plan(
        sizes=tuple(sizes),
        finish=tuple(head.finish for head in heads),
        rows=chunk_rows(len(positions), sum(sizes), hidden.device, chunk_bytes),
        dtype=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype,
        gradients=torch.is_grad_enabled(),
        compiled=compiled,
    )
    parameters = [parameter for head in heads for parameter in (head.weight, head.bias)]
    weights = weights.expand(labels.shape)
    return ChunkedLoss(*_LinearCrossEntropy.apply(plan, positions, labels, weights, hidden, *parameters))


@dataclass(frozen=True)
class _Plan:
    """Arguments of the autograd function `_LinearCrossEntropy` that are not tensors."""

    sizes: tuple[int, ...]
    finish: tuple[Callable[[Tensor], Tensor] | None, ...]
    rows: int  # positions of a chunk
    dtype: torch.dtype  # type of products
    gradients: bool
    compiled: bool


def chunk_rows(positions: int, ids: int, device: torch.device, chunk_bytes: int | None = None) -> int:
    """Return the number of positions whose logits form one chunk: equal chunks of at most `chunk_bytes` of logits.

    A chunk has at least `MULTIPLE` positions, even if these exceed `chunk_bytes`.

    Args:
        positions: number of labelled positions.
        ids: number of logits of a position.
        device: device of the logits, on which the default of `chunk_bytes` depends, see `CHUNK_BYTES`.
        chunk_bytes: maximum size of a chunk's float32 logits in bytes.
    """
    chunk_bytes = chunk_bytes or CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"])
    most = max(1, chunk_bytes // (4 * ids * MULTIPLE))  # in multiples
    total = -(-positions // MULTIPLE)
    return -(-total // -(-total // most)) * MULTIPLE


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, positions: Tensor, labels: Tensor, weights: Tensor, hidden: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        wanted = [plan.gradients and needed for needed in ctx.needs_input_grad[4:]]
        with torch.autocast(hidden.device.type, enabled=False):
            losses, ctx.found = _compute(plan, positions, labels, weights, hidden, parameters, wanted)
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        found, ctx.found = ctx.found, None
        if found is None:
            raise RuntimeError("linear_cross_entropy: backward can be called once, its gradients are not kept")
        return None, None, None, None, *(each if each is None else each.mul_(gradient) for each in found)


def _compute(
    plan: _Plan,
    positions: Tensor,
    labels: Tensor,
    weights: Tensor,
    hidden: Tensor,
    parameters: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the losses [P, S] and the gradients of hidden states and head parameters, None where none is required."""
    grad = any(wanted)
    tables = [None if parameter is None else parameter.detach().to(plan.dtype) for parameter in parameters]
    heads = [_Part(*each) for each in zip(tables[::2], tables[1::2], plan.finish, strict=True)]
    to_hidden = torch.zeros_like(hidden) if wanted[0] else None
    to_parameters = [
        torch.zeros_like(parameter, dtype=_exact(parameter.dtype)) if needed else None
        for parameter, needed in zip(parameters, wanted[1:], strict=True)
    ]
    loss_and_gradient = _compiled_loss_and_gradient() if plan.compiled else _loss_and_gradient
    chunk = hidden.new_empty(plan.rows, sum(plan.sizes), dtype=plan.dtype)
    losses = hidden.new_empty(labels.shape, dtype=_exact(hidden.dtype))
    chunks = zip(*(each.split(plan.rows) for each in (positions, labels, weights, losses)), strict=True)
    for some, label, weight, loss in chunks:
        rows = hidden.index_select(0, some).to(plan.dtype)
        logits = chunk[: len(some)]
        pieces = logits.split([len(head.weight) for head in heads], dim=1)
        finishing = [head.compute(rows, piece) for head, piece in zip(heads, pieces, strict=True)]
        for streams, at in _split_streams(logits, plan.sizes):
            loss[:, at], gradient = loss_and_gradient(streams, label[:, at], weight[:, at], grad)
            if grad and gradient is not streams:
                streams.copy_(gradient)
        if not grad:
            continue
        for number, (head, piece, back) in enumerate(zip(heads, pieces, finishing, strict=True)):
            piece = piece if back is None else back(piece)
            if to_hidden is not None:
                to_hidden.index_add_(0, some, (piece @ head.weight).to(to_hidden.dtype))
            if (table := to_parameters[2 * number]) is not None:
                _add_product(table, piece.t(), rows)
            if (bias := to_parameters[2 * number + 1]) is not None:
                bias += piece.sum(dim=0, dtype=bias.dtype)
    kept = [g if g is None else g.to(p.dtype) for g, p in zip(to_parameters, parameters, strict=True)]
    return losses, [to_hidden, *kept]


class _Part(NamedTuple):
    """A linear head with weight [V, D] and bias [V] in the type of the matrix products."""

    weight: Tensor
    bias: Tensor | None
    finish: Callable[[Tensor], Tensor] | None

    def compute(self, rows: Tensor, out: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Write the logits of hidden states [C, D] into `out` [C, V].

        Returns:
            The function that maps a gradient of the logits to that of the logits before `finish`, or None without one.
        """
        if self.bias is None:
            torch.mm(rows, self.weight.t(), out=out)
        else:
            torch.addmm(self.bias, rows, self.weight.t(), out=out)
        if self.finish is None:
            return None
        with torch.enable_grad():
            before = out.clone().requires_grad_()
            after = self.finish(before)
        out.copy_(after.detach())
        return lambda gradient: torch.autograd.grad(after, before, gradient.to(after.dtype))[0]


def _split_streams(logits: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, slice]]:
    """Split logits [C, V] into groups of streams of equal size [C, s, V / s], with the slice of streams of each."""
    if len(set(sizes)) == 1:
        return [(logits.unflatten(1, (len(sizes), -1)), slice(0, len(sizes)))]
    return [(one[:, None], slice(s, s + 1)) for s, one in enumerate(logits.split(list(sizes), dim=1))]


def _loss_and_gradient(logits: Tensor, labels: Tensor, weights: Tensor, grad: bool) -> tuple[Tensor, Tensor]:
    """Return the losses [C, s] of logits [C, s, V] with labels [C, s], and the gradient of the weighted total.

    The gradient is computed only if `grad` is true, and overwrites float32 logits.
    """
    scores, known, index = logits.to(_exact(logits.dtype)), labels != IGNORE, labels.clamp(min=0)[..., None]
    at_label, highest = scores.gather(-1, index), scores.amax(dim=-1, keepdim=True)
    scores = scores.sub_(highest).exp_()
    total = scores.sum(dim=-1, keepdim=True)
    losses = (total.log() + highest - at_label)[..., 0].masked_fill(~known, 0.0)
    if grad:
        share = (weights * known)[..., None]
        scores = scores.mul_(share / total).scatter_add_(-1, index, -share)
    return losses, scores


@cache
def _compiled_loss_and_gradient() -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `_loss_and_gradient` compiled by torch to one or two kernels; its gradient has the type of the logits."""

    def loss_and_gradient(logits: Tensor, labels: Tensor, weights: Tensor, grad: bool) -> tuple[Tensor, Tensor]:
        scores, known = logits.to(_exact(logits.dtype)), labels != IGNORE
        log_total = torch.logsumexp(scores, dim=-1)
        at_label = scores.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        losses = torch.where(known, log_total - at_label, 0.0)
        if not grad:
            return losses, logits
        hit = torch.arange(logits.shape[-1], device=logits.device) == labels[..., None]
        gradient = ((scores - log_total[..., None]).exp() - hit.to(scores.dtype)) * (weights * known)[..., None]
        return losses, gradient.to(logits.dtype)

    return torch.compile(loss_and_gradient, dynamic=True)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Return the data type in which the losses of logits of a given type are computed and summed: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _add_product(table: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the matrix product of `a` [V, C] and `b` [C, D] to a tensor [V, D] in place."""
    if a.dtype == table.dtype:
        table.addmm_(a, b)
    elif a.is_cuda and table.dtype == torch.float32:  # the product is not stored
        torch.addmm(table, a, b, out_dtype=torch.float32, out=table)
    else:
        table += a @ b
