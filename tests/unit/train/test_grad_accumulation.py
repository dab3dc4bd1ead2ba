"""Tests of how many batches make one optimiser step in gradient accumulation."""

from __future__ import annotations

import pytest

from omnikit.train.grad_accumulation import plan_accumulation


@pytest.mark.parametrize(
    ("wanted", "per_batch", "processes", "batches"),
    [(192, 12.0, 8, 16), (192, 12.0, 1, 16), (192, 10.0, 8, 16), (192, 50.0, 8, 8), (None, 10.0, 2, 2), (1, 9.0, 1, 1)],
)
def test_it_comes_as_near_as_whole_batches_can(wanted, per_batch, processes, batches):
    found = plan_accumulation(wanted, per_batch, processes)
    assert found.batches == found.accumulated * processes == batches
    assert found.sequences == pytest.approx(per_batch * batches)


def test_it_says_what_it_is():
    said = str(plan_accumulation(192, 12.0, 8))
    assert said == "effective batch: 192 sequences in 16 batches on 8 processes"


def test_a_fixed_number_of_batches_wins():
    assert plan_accumulation(192, 12.0, 2, accumulated=3).batches == 6


def test_less_than_a_sequence_is_refused():
    with pytest.raises(ValueError, match="effective_batch_size: 0; must be 1 sequence or more, or null"):
        plan_accumulation(0, 12.0, 1)
