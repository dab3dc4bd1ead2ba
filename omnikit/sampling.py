"""From logits to the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omnikit.ranges import COUNT_OR_NONE, Range

_TEMPERATURE = Range(1e-3, 1e3)
"""What is nearer to 0 overflows where logits are divided by it; what is higher draws evenly."""
_RANGES = {
    "top_k": COUNT_OR_NONE,
    "top_p": Range(0, 1, above=True, null=True),
    "repetition_penalty": Range(0, 1e3, above=True),
}


@dataclass(frozen=True)
class Sampling:
    """How one kind of stream is sampled; `temperature` 0 is greedy.

    Args:
        temperature: divides the logits.
        top_k: keep the k best; None keeps all.
        top_p: keep the smallest set of ids with this much probability; None keeps all.
        repetition_penalty: divides (or, if negative, multiplies) the logits of ids emitted before (arXiv 1909.05858).
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature != 0 and (problem := _TEMPERATURE.problem(self.temperature)):
            raise ValueError(f"temperature: {self.temperature}; it must be 0 (greedy), or {problem[len('must be ') :]}")
        for name, allowed in _RANGES.items():
            if problem := allowed.problem(value := getattr(self, name)):
                raise ValueError(f"{name}: {value}; it {problem}")


def sample(
    logits: Tensor, how: Sampling, *, previous: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Logits [B, V] (`-inf` = forbidden), ids emitted so far [B, L] -> next ids [B]."""
    if how.repetition_penalty != 1.0 and previous is not None and previous.shape[1]:
        logits = _penalise(logits, previous, how.repetition_penalty)
    if how.temperature == 0 or how.top_k == 1:
        return logits.argmax(dim=-1)
    logits = _cut(logits / how.temperature, how)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]


def _penalise(logits: Tensor, previous: Tensor, penalty: float) -> Tensor:
    seen = logits.gather(1, previous)
    return logits.scatter(1, previous, torch.where(seen > 0, seen / penalty, seen * penalty))


def _cut(logits: Tensor, how: Sampling) -> Tensor:
    if how.top_k is not None and how.top_k < logits.shape[-1]:
        floor = logits.topk(how.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < floor, float("-inf"))
    if how.top_p is not None and how.top_p < 1:
        ranked, order = logits.sort(dim=-1, descending=True)
        before = ranked.softmax(dim=-1).cumsum(dim=-1) - ranked.softmax(dim=-1)
        ranked = ranked.masked_fill(before >= how.top_p, float("-inf"))
        logits = torch.empty_like(logits).scatter(1, order, ranked)
    return logits
