"""Tests of the number of first turns."""

from __future__ import annotations

import numpy as np
import pytest

from omnikit.data.first_turns import usual_first


@pytest.mark.parametrize(
    ("firsts", "expected"), [([1, 1, 0], 1), ([0, 0, 1], 0), ([2, 1], 1), ([3], 3), ([2, 2, 1, 1, 0], 1)]
)
def test_the_usual_first_number_is_the_most_common_one(firsts: list[int], expected: int):
    assert usual_first(firsts) == usual_first(np.array(firsts, np.int32)) == expected
