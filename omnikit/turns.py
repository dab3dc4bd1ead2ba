"""Rules of conversations that training and generation share.

A conversation is one sequence: the steps of each turn as `omnikit.tasks.make_sample` lays them out, its closing step
included, are followed by the prompt of the next turn.

    | prompt 1 | answer 1 .. closing step | prompt 2 | answer 2 .. closing step | prompt 3 | ..

An answer that the listener interrupts is cut to what was heard of it, and closed like any other answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def heard_part(text: Sequence[int], codes: Tensor, frames: int) -> tuple[Sequence[int], Tensor]:
    """Return the part of an answer that a listener heard: its first frames and the same share of its text tokens.

    The number of text tokens is rounded up.

    Args:
        text: text ids of the whole answer, without `eot`.
        codes: codes [K, T] of the whole answer.
        frames: number of frames that were heard; more than T are all of them.
    """
    whole = codes.shape[1]
    frames = min(frames, whole)
    tokens = -(-len(text) * frames // whole) if whole else 0
    return text[:tokens], codes[:, :frames]
