"""Test that training steps do not make the CPU wait for the device, and what they do when flags are read.

Training runs on torch's device `meta`, whose tensors have shapes but no values, so that every reading of a value fails.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from omnikit.data.collate import Batch
from omnikit.errors import Stopped
from omnikit.losses import cross_entropy
from tests.unit.faulty_runs import loader
from tests.unit.qa_brain import recipe
from tests.unit.train.objective_runs import DIVISIONS, RecordingBrain, brain_of, micro_batches


class MetaOptimizer(torch.optim.SGD):
    """A stand-in for a fused optimiser, which takes or skips its step on the device."""

    _step_supports_amp_scaling = True
    taken: list[torch.Tensor]

    def step(self) -> None:
        self.taken.append(self.found_inf)


def on_meta(folder: Path, log_steps: int) -> RecordingBrain:
    """Return a Brain whose model and losses are on the device `meta`."""
    brain = brain_of(folder)
    brain.hparams.log_steps = log_steps
    brain.model.to("meta")
    brain.device = "meta"
    brain.opt_class = lambda weights: MetaOptimizer(weights, lr=0.1)
    brain.batches, brain.unread, brain.request = [], [], type("Nobody", (), {"signal": 0})
    brain.on_fit_start()
    brain.optimizer.taken = []
    brain.bar = type("NoBar", (), {"update": lambda bar: None})()
    return brain


@pytest.fixture
def no_autocast(monkeypatch) -> None:
    """Switch autocast off, which the device `meta` does not have."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **options: nullcontext())


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize(
    ("name", "own_loss", "packed"),
    [
        ("whole", False, False),
        pytest.param("whole", False, True, marks=pytest.mark.long),
        pytest.param("accumulated", False, False, marks=pytest.mark.long),
        ("accumulated", True, False),
    ],
)
def test_only_every_tenth_step_reads_from_the_device(tmp_path, name, own_loss, packed, monkeypatch):
    if own_loss:
        monkeypatch.setattr(recipe, "token_loss", lambda logits, labels: cross_entropy(logits, labels))
    brain = on_meta(tmp_path, log_steps=10)
    batches = micro_batches(brain.model, DIVISIONS[name], 0, packed)
    read = []
    monkeypatch.setattr(brain, "read_flags", lambda: read.append(brain.optimizer_step))
    for _ in range(12):
        for batch in batches:
            brain.step += 1
            assert brain.fit_batch(batch).device.type == "cpu"
            assert not brain._should_save_intra_epoch_ckpt(0.0, 1)
    assert read == [10] and len(brain.optimizer.taken) == len(brain.unread) == brain.progress.steps == 12
    assert all(flag.device.type == "meta" for flag in brain.optimizer.taken)


@pytest.mark.usefixtures("no_autocast")
def test_the_stand_in_notices_a_reading(tmp_path):
    brain = on_meta(tmp_path, log_steps=1)
    with pytest.raises(NotImplementedError, match="meta"):
        brain.fit_batch(micro_batches(brain.model, DIVISIONS["whole"], 0)[0])


def poisoned(model, steps: int, bad: set[int]) -> list[Batch]:
    """Return the batches of a number of optimiser steps, of which those at some positions have an invalid feature."""
    found = []
    for number in range(steps):
        batch = micro_batches(model, DIVISIONS["whole"], 0)[0]
        if number in bad:
            batch.features[0, 0, 0] = torch.nan
        batch.ids = (f"step{number}",)
        found.append(batch)
    return found


@pytest.mark.parametrize("optimizer", ["fused", "plain"])
def test_steps_between_two_readings_are_skipped_and_named_later(tmp_path, caplog, optimizer):
    weights = {}
    for log_steps in (1, 4):
        brain = brain_of(tmp_path)
        brain.hparams.log_steps = log_steps
        brain.opt_class = lambda each: torch.optim.AdamW(each, fused=optimizer == "fused")
        batches = poisoned(brain.model, 6, {1, 2, 4})
        with caplog.at_level("WARNING", "omnikit"):
            caplog.clear()
            brain.fit(brain.hparams.epochs, loader(batches), progressbar=False)
        found = [record.getMessage() for record in caplog.records]
        assert [text.split(":")[0] for text in found] == [
            f"optimiser step {step} skipped ({row} in a row)" for step, row in ((2, 1), (3, 2), (5, 1))
        ]
        assert [text.split()[-1] for text in found] == ["step1", "step2", "step4"]
        assert brain.progress.skipped == 3 and brain.optimizer_step == brain.progress.steps == 6
        weights[log_steps] = [each.clone() for each in brain.model.parameters()]
        assert all(each.isfinite().all() for each in weights[log_steps])
    assert all(map(torch.equal, weights[1], weights[4]))


def test_patience_ends_at_a_reading(tmp_path):
    brain = brain_of(tmp_path)
    brain.hparams.log_steps, brain.nonfinite_patience = 4, 3
    with pytest.raises(Stopped, match="after 3 unusable optimiser steps in a row"):
        brain.fit(brain.hparams.epochs, loader(poisoned(brain.model, 9, {0, 1, 2})), progressbar=False)
    assert brain.optimizer_step == 4
