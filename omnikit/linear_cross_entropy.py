"""Cross-entropy of linear heads whose logits exist for one chunk of positions at a time.

    hidden [N, D] -> at the labelled positions, chunk by chunk: [C, D] -> logits [C, V] -> loss, gradients

Logits are the largest tensors of a training step by far, and nothing but their loss and two products is ever made of
them. So the gradients of hidden states and heads are computed together with the loss, while a chunk's logits are there;
the backward pass multiplies them by the gradient of the loss.

Letters: N positions of a batch, P labelled ones, C of a chunk, D width, S streams, V ids of all streams together.
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
"""Bytes that a chunk's float32 logits may take, by type of device. Each chunk adds to the gradients of all head
weights, and a GPU is soon done with one, so it gets larger ones."""


class Head(NamedTuple):
    """A linear layer from normed hidden states to the logits of some ids."""

    weight: Tensor  # [V, D]
    bias: Tensor | None = None  # [V]
    finish: Callable[[Tensor], Tensor] | None = None
    """Differentiable function that is applied to the logits [C, V] element by element, such as a soft bound."""


class ChunkedLoss(NamedTuple):
    """What a loss is minimised by, and what it consists of."""

    total: Tensor  # [], the streams' sums by weight
    sums: Tensor  # [S], nats, without gradient


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
    """Compute the cross-entropy of the logits that the heads side by side give at some positions.

    Nothing is fetched from the device. Under autocast, products are computed in its type and all else in float32, as
    of the plain computation.

    Args:
        hidden: normed hidden states [N, D].
        heads: those frozen get no gradient.
        positions: rows of `hidden` that have a label [P], see `omnikit.label_positions`; without any, the total has no
            gradient at all, so that an optimiser leaves the heads alone.
        labels: ids within their streams [P, S], `IGNORE` where there is none.
        weights: of each stream's sum in the total [S], float32. They are needed before the backward pass, because it
            has no logits any more.
        sizes: ids of each stream; their sum is that of the heads' rows.
        chunk_bytes: see `CHUNK_BYTES`, whose number is the default.
        compiled: let torch compile what lies between the products; it does so at the first call, for some seconds.
    """
    if not len(positions):
        sums = hidden.new_zeros(len(sizes), dtype=_exact(hidden.dtype))
        return ChunkedLoss(sums.sum(), sums)
    device = hidden.device.type
    plan = _Plan(
        sizes=tuple(sizes),
        finish=tuple(head.finish for head in heads),
        rows=_rows(len(positions), sum(sizes), chunk_bytes or CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"])),
        dtype=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype,
        gradients=torch.is_grad_enabled(),
        compiled=compiled,
    )
    parameters = [parameter for head in heads for parameter in (head.weight, head.bias)]
    return ChunkedLoss(*_LinearCrossEntropy.apply(plan, positions, labels, weights, hidden, *parameters))


@dataclass(frozen=True)
class _Plan:
    """What `_LinearCrossEntropy` needs besides tensors."""

    sizes: tuple[int, ...]
    finish: tuple[Callable[[Tensor], Tensor] | None, ...]
    rows: int  # of a chunk
    dtype: torch.dtype  # of products
    gradients: bool
    compiled: bool


def _rows(positions: int, ids: int, chunk_bytes: int) -> int:
    """Return the rows of chunks that are about equally large and within `chunk_bytes`, if `MULTIPLE` rows are."""
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
            sums, ctx.found = _compute(plan, positions, labels, weights, hidden, parameters, wanted)
        ctx.mark_non_differentiable(sums)
        return (sums * weights).sum(), sums

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
    """Return the sums [S] and the gradients of hidden states and parameters, None in place of those not wanted."""
    differs = any(wanted)
    tables = [None if parameter is None else parameter.detach().to(plan.dtype) for parameter in parameters]
    heads = [_Part(*each) for each in zip(tables[::2], tables[1::2], plan.finish, strict=True)]
    to_hidden = torch.zeros_like(hidden) if wanted[0] else None
    to_parameters = [
        torch.zeros_like(parameter, dtype=_exact(parameter.dtype)) if needed else None
        for parameter, needed in zip(parameters, wanted[1:], strict=True)
    ]
    judge = _compiled_judge() if plan.compiled else _judge
    chunk = hidden.new_empty(plan.rows, sum(plan.sizes), dtype=plan.dtype)
    sums = torch.zeros(len(plan.sizes), device=hidden.device, dtype=_exact(hidden.dtype))
    for some, label in zip(positions.split(plan.rows), labels.split(plan.rows), strict=True):
        rows = hidden.index_select(0, some).to(plan.dtype)
        logits = chunk[: len(some)]
        pieces = logits.split([len(head.weight) for head in heads], dim=1)
        finishing = [head.compute(rows, piece) for head, piece in zip(heads, pieces, strict=True)]
        for streams, at in _alike(logits, plan.sizes):
            found, gradient = judge(streams, label[:, at], weights[at], differs)
            sums[at] += found
            if differs and gradient is not streams:
                streams.copy_(gradient)
        if not differs:
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
    return sums, [to_hidden, *kept]


class _Part(NamedTuple):
    """A head in the type of the products."""

    weight: Tensor
    bias: Tensor | None
    finish: Callable[[Tensor], Tensor] | None

    def compute(self, rows: Tensor, out: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Write the logits of hidden states [C, D] into `out` [C, V]; return the function from their gradient to that
        of the logits before `finish`, None where these are the same."""
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


def _alike(logits: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, slice]]:
    """Logits [C, V] -> those of the streams [C, s, V / s], all at once where they have equally many ids, and which."""
    if len(set(sizes)) == 1:
        return [(logits.unflatten(1, (len(sizes), -1)), slice(0, len(sizes)))]
    return [(one[:, None], slice(s, s + 1)) for s, one in enumerate(logits.split(list(sizes), dim=1))]


def _judge(logits: Tensor, labels: Tensor, weights: Tensor, differs: bool) -> tuple[Tensor, Tensor]:
    """Logits [C, s, V] and labels [C, s] -> the sums [s], and where it is wanted the gradient of the sums by weight;
    float32 logits are overwritten by it."""
    scores, known, index = logits.to(_exact(logits.dtype)), labels != IGNORE, labels.clamp(min=0)[..., None]
    at_label, highest = scores.gather(-1, index), scores.amax(dim=-1, keepdim=True)
    scores = scores.sub_(highest).exp_()
    total = scores.sum(dim=-1, keepdim=True)
    losses = (total.log() + highest - at_label)[..., 0].masked_fill(~known, 0.0)
    if differs:
        share = (weights * known)[..., None]
        scores = scores.mul_(share / total).scatter_add_(-1, index, -share)
    return losses.sum(dim=0), scores


@cache
def _compiled_judge() -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `_judge` as one or two kernels, which read the logits and write their gradient in the logits' type."""

    def judge(logits: Tensor, labels: Tensor, weights: Tensor, differs: bool) -> tuple[Tensor, Tensor]:
        scores, known = logits.to(_exact(logits.dtype)), labels != IGNORE
        log_total = torch.logsumexp(scores, dim=-1)
        at_label = scores.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        losses = torch.where(known, log_total - at_label, 0.0).sum(dim=0)
        if not differs:
            return losses, logits
        hit = torch.arange(logits.shape[-1], device=logits.device) == labels[..., None]
        gradient = ((scores - log_total[..., None]).exp() - hit.to(scores.dtype)) * (weights * known)[..., None]
        return losses, gradient.to(logits.dtype)

    return torch.compile(judge, dynamic=True)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Return the type of losses and sums beside tensors of a type: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _add_product(table: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the product of `a` [V, C] and `b` [C, D] to a table [V, D]."""
    if a.dtype == table.dtype:
        table.addmm_(a, b)
    elif a.is_cuda and table.dtype == torch.float32:  # without the product in memory
        torch.addmm(table, a, b, out_dtype=torch.float32, out=table)
    else:
        table += a @ b
