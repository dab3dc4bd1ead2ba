"""Prefill of prompts of which some continue a parked sequence and some begin a sequence of their own.

Sequences that are continued have different numbers of positions before their prompts, so each is computed by itself;
those that begin are computed as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from torch import Tensor

from omnikit.interfaces import Parked, Prefill


class PrefillInParts(Prefill):
    """A prefill that consists of others, whose sequences follow each other in the order of the parts.

    Args:
        parts: the prefills.
        prompts: number of prompts in each of them; None = one.
    """

    def __init__(self, parts: Sequence[Prefill], prompts: Sequence[int] | None = None):
        self.parts, self.prompts = list(parts), list(prompts or [1] * len(parts))

    @property
    def left(self) -> int:
        return sum(part.left for part in self.parts)

    def advance(self, positions: int) -> None:
        unfinished = [(part, count) for part, count in zip(self.parts, self.prompts, strict=True) if part.left]
        prompts = sum(count for _, count in unfinished)
        for part, count in unfinished:
            part.advance(positions * count // prompts)


def begin_in_parts(
    prompts: Sequence[Tensor],
    after: Sequence[Parked | None] | None,
    begin: Callable[[Sequence[Tensor], Parked | None], Prefill],
) -> Prefill:
    """Begin the prefill of prompts [L_i, D], one by one where they continue a parked sequence.

    Args:
        prompts: embeddings of the prompts.
        after: for each prompt the parked sequence that it continues, or None; None = no prompt continues one.
        begin: function that begins the prefill of several new sequences (its second argument is None), or of one prompt
            that continues the parked sequence in its second argument.
    """
    if after is None or not any(parked is not None for parked in after):
        return begin(prompts, None)
    pairs = zip(prompts, after, strict=True)
    runs = groupby(enumerate(pairs), key=lambda item: -1 if item[1][1] is None else item[0])
    groups = [[pair for _, pair in run] for _, run in runs]
    parts = [begin([prompt for prompt, _ in group], group[0][1]) for group in groups]
    return PrefillInParts(parts, list(map(len, groups)))


def parts_of(prefill: Prefill) -> list[Prefill]:
    """Return the prefills that `begin_in_parts` began, in the order of their sequences."""
    return prefill.parts if isinstance(prefill, PrefillInParts) else [prefill]
