"""Sampling of the next tokens from logits, for many sequences at once, each with its own options.

Letters: R sequences, V vocabulary; `...` stands for the streams of a sequence if there are several.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omnikit.counter_rng import GOLDEN, gumbel, hash32
from omnikit.option_ranges import COUNT_OR_NONE, Range

_TEMPERATURE = Range(1e-3, 1e3)
"""Range of temperatures: logits divided by a lower one overflow, and a higher one samples almost uniformly."""
_RANGES = {
    "top_k": COUNT_OR_NONE,
    "top_p": Range(0, 1, above=True, null=True),
    "repetition_penalty": Range(0, 1e3, above=True),
}


@dataclass(frozen=True)
class Sampling:
    """Sampling options of one kind of stream; `temperature` 0 is greedy decoding.

    Args:
        temperature: number by which the logits are divided.
        top_k: number of ids of the largest logits to sample from; None = all.
        top_p: sample from the smallest set of ids with at least this total probability; None = all.
        repetition_penalty: factor that divides the logits of ids emitted before, or multiplies negative ones (arXiv
            1909.05858).
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


    @property
    def draws(self) -> bool:
        """Whether ids are sampled at random; otherwise decoding is greedy."""
        return self.temperature != 0 and self.top_k != 1

    @property
    def cuts(self) -> bool:
        """Whether top-k or top-p excludes ids before one is sampled."""
        return self.draws and (self.top_k is not None or (self.top_p is not None and self.top_p < 1))

    @property
    def penalises(self) -> bool:
        """Whether the logits of ids that were emitted before are lowered."""
        return self.repetition_penalty != 1.0


def noise_keys(seeds: Tensor, steps: Tensor, streams: Tensor) -> Tensor:
    """Return the keys [R, S] of the noise that each sequence and stream gets at its step.

    Args:
        seeds: seed of each sequence [R], int64.
        steps: answer step of each sequence [R], int64.
        streams: indices of the streams [S], int64.
    """
    sequences = hash32(hash32(seeds) + steps * GOLDEN)
    return hash32(sequences[:, None] + streams * GOLDEN)


def sample(
    logits: Tensor,
    numbers: Tensor,
    *,
    keys: Tensor | None = None,
    seen: Tensor | None = None,
    cut: bool = False,
) -> Tensor:
    """Choose the next id of every sequence and stream.

    A sampled id is the one of the largest logit after Gumbel noise has been added, which is a sample from the softmax
    of the logits. The noise is a hash of its key and the id, so it depends neither on the other sequences nor on the
    device.

    Args:
        logits: [R, ..., V], float32, `-inf` where an id is excluded.
        numbers: results of `sampling_numbers` for each sequence [R, 4].
        keys: keys of the noise [R, ...], see `noise_keys`; None = all sequences are greedy.
        seen: which ids were emitted before [R, ..., V], bool; None = no sequence has a repetition penalty.
        cut: whether any sequence has `top_k` or `top_p`.

    Returns:
        Ids [R, ...], int64.
    """
    temperature, top_k, top_p, penalty = (column.view(-1, *[1] * (logits.dim() - 1)) for column in numbers.unbind(1))
    if seen is not None:
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    best = logits.argmax(dim=-1)
    if keys is None:
        return best
    draws = temperature > 0
    scores = logits / torch.where(draws, temperature, 1.0)
    if cut:
        scores = _cut(scores, top_k, top_p)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    drawn = (scores + gumbel(hash32(keys[..., None] + ids * GOLDEN))).argmax(dim=-1)
    return torch.where(draws[..., 0], drawn, best)


def sampling_numbers(how: Sampling) -> tuple[float, float, float, float]:
    """Return sampling options as numbers: temperature (0 = greedy), top-k (0 = all), top-p (1 = all), penalty."""
    temperature = how.temperature if how.draws else 0.0
    top_p = 1.0 if how.top_p is None else how.top_p
    return temperature, float(how.top_k or 0), top_p, how.repetition_penalty


def _cut(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Return scores with `-inf` for ids outside the `top_k` best, and of these outside the most probable `top_p`."""
    ranked, order = scores.sort(dim=-1, descending=True, stable=True)
    last = torch.where(top_k > 0, top_k, scores.shape[-1]).long().clamp(max=scores.shape[-1]) - 1
    floor = ranked.gather(-1, last.expand(*ranked.shape[:-1], 1))
    ranked = ranked.masked_fill(ranked < floor, float("-inf"))
    probabilities = ranked.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    ranked = ranked.masked_fill((before >= top_p) & (top_p < 1), float("-inf"))
    return torch.empty_like(scores).scatter(-1, order, ranked)
