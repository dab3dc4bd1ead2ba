"""Tests of the rules that training and generation of conversations share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omnikit.turns import heard_part, heard_tokens


@pytest.mark.parametrize(
    ("tokens", "whole", "heard", "kept"),
    [(4, 8, 8, 4), (4, 8, 9, 4), (4, 8, 4, 2), (4, 8, 5, 3), (4, 8, 1, 1), (4, 8, 0, 0), (0, 8, 3, 0), (4, 0, 0, 0)],
)
def test_heard_part_has_the_heard_share_of_text(tokens, whole, heard, kept):
    codes = torch.arange(2 * whole).view(2, whole)
    text, frames = heard_part(list(range(tokens)), codes, heard)
    assert text == list(range(kept))
    assert torch.equal(frames, codes[:, :heard])


def test_heard_tokens_of_several_answers():
    tokens, heard, frames = (np.array(each) for each in zip((4, 4, 8), (4, 5, 8), (4, 1, 8), (0, 3, 8), strict=True))
    assert heard_tokens(tokens, heard, frames).tolist() == [2, 3, 1, 0]
