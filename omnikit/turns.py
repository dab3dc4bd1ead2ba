"""Rules of conversations that training and generation share.

A conversation is one sequence: the steps of each turn as `omnikit.tasks.make_sample` lays them out, its closing step
included, are followed by the prompt of the next turn.

    | prompt 1 | answer 1 .. closing step | prompt 2 | answer 2 .. closing step | prompt 3 | ..

An answer that the listener interrupts is cut to what was heard of it, and closed like any other answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

Count = TypeVar("Count", int, np.ndarray)


def heard_tokens(tokens: Count, heard: Count, frames: Count) -> Count:
    """Return the number of text tokens that belong to the heard part of an answer: the heard share of all, rounded up.

    Args:
        tokens: number of text tokens of the whole answer, or an array with that of several.
        heard: number of frames that were heard.
        frames: number of frames of the whole answer, above 0.
    """
    return -(-tokens * heard // frames)


def heard_part(text: Sequence[int], codes: Tensor | None, frames: int) -> tuple[Sequence[int], Tensor | None]:
    """Return the part of an answer that a listener heard: its first frames and the same share of its text tokens.

    The share is that of `heard_tokens`. Of a written answer, return its first text tokens.

    Args:
        text: text ids of the whole answer, without `eot`.
        codes: codes [K, T] of the whole answer; None for a written one.
        frames: number of frames that were heard; more than T are all of them. Of a written answer, of text tokens.
    """
    if codes is None:
        return text[:frames], None
    whole = codes.shape[1]
    frames = min(frames, whole)
    tokens = heard_tokens(len(text), frames, whole) if whole else 0
    return text[:tokens], codes[:, :frames]
