"""Test that the training steps that benchmarks/train_step.py compares are equal, and its counts of operations."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.train_step import CHUNKED, EARLIER, bare_loss
from benchmarks.training_material import STAGES, attention_operations, fixed_batch, step_operations
from tests.unit.toy import toy_model


@pytest.fixture(params=STAGES, ids=lambda stage: stage.name)
def stage(request):
    return request.param


def drawn(stage):
    model = toy_model(tts_blocks=1)
    model.freeze_all_but(list(stage.trainable))
    return model, fixed_batch(model, stage, rows=6, length=64, seed=0)


def test_the_earlier_and_the_chunked_step_are_the_same(stage):
    model, batch = drawn(stage)
    found = []
    for variant in (EARLIER, CHUNKED):
        model.zero_grad()
        loss = bare_loss(model, batch, variant)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)


def test_operations_are_those_that_torch_counts(stage):
    model, batch = drawn(stage)
    with FlopCounterMode(display=False) as counter:
        bare_loss(model, batch, EARLIER).backward()
    # torch does not count attention on a CPU; it also counts the padding of the labelled positions, which we do not
    ours = step_operations(model, batch) - attention_operations(model, batch)
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.05)
