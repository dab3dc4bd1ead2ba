"""Test that the gradients of an optimiser step do not depend on its division into micro-batches and processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rewriting import run_by_two
from torch import Tensor

from omnikit.losses import LABELS, TASKS
from tests.unit.train.objective_runs import DIVISIONS, SHARED, brain_of, gradients, micro_batches, run_share


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """Folder of the gradients that two processes computed together."""
    folder = tmp_path_factory.mktemp("together")
    assert run_by_two(run_share, folder) == [0, 0]
    return folder


def assert_same(ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None]) -> None:
    assert ours.keys() == theirs.keys()
    for name, one in ours.items():
        assert (one is None) == (theirs[name] is None), name
        if one is not None:
            assert torch.allclose(one, theirs[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("normalization", [LABELS, TASKS])
def test_accumulated_micro_batches_have_the_gradients_of_the_whole_step(tmp_path, normalization):
    whole = gradients(tmp_path, "whole", normalization)
    assert whole["new_audio_embeddings.head.weight"].any() and whole["llm.lm_head.weight"].any()
    assert_same(gradients(tmp_path, "accumulated", normalization), whole)
    alone = gradients(tmp_path, "nothing at last", normalization, [[[2], [0]]])  # the second trains nothing
    assert_same(alone, gradients(tmp_path, "nothing at last", normalization, [[[2, 0]]]))


@pytest.mark.parametrize("normalization", [LABELS, TASKS])
@pytest.mark.parametrize("name", SHARED)
def test_two_processes_have_the_gradients_of_one(tmp_path, together, name, normalization):
    """Both processes get the gradients of one process with all their samples, even of parts that one does not use."""
    alone = sorted(i for process in DIVISIONS[name] for batch in process for i in batch)
    expected = gradients(tmp_path, name, normalization, [[alone]])
    for rank in (0, 1):
        assert_same(torch.load(together / f"{name}.{normalization}.{rank}.pt"), expected)


def test_the_normalizations_differ(tmp_path):
    by_labels, by_tasks = (gradients(tmp_path, "whole", each) for each in (LABELS, TASKS))
    assert not torch.allclose(by_labels["llm.lm_head.weight"], by_tasks["llm.lm_head.weight"], rtol=0.1)


def test_the_weight_of_a_label_does_not_depend_on_its_micro_batch(tmp_path):
    brain = brain_of(tmp_path)
    brain.on_fit_start()
    every = [
        brain.label_weights(batch)
        for name in ("whole", "accumulated", "shared", "both") for rank in range(len(DIVISIONS[name]))
        for batch in micro_batches(brain.model, DIVISIONS[name], rank)
    ]  # fmt: skip
    assert len(every) == 11 and all(torch.equal(each, every[0]) for each in every)
