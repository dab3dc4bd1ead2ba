"""Tests that invalid samples, weights or gradients and an extreme learning rate do no lasting damage to a training."""

from __future__ import annotations

import json
import math
import signal

import pytest
import torch
from faulty_runs import BATCHES, FAULTS, PATIENCE, POISONED, batches, brain_of, loader, run, run_share, steps_of
from rewriting import run_by_two

from omnikit.errors import Stopped
from omnikit.train.epoch_progress import StreamSums
from omnikit.train.stop_signals import StopRequest


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, list[dict]]:
    """Mapping from each injected fault to the outcome of its training in a single process, as a list of one."""
    folder = tmp_path_factory.mktemp("alone")
    return {fault: [run(folder / fault, fault)] for fault in FAULTS}


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> dict[str, list[dict]]:
    """Mapping from each injected fault to the outcomes of its training in two processes, one for each."""
    folder = tmp_path_factory.mktemp("together")
    assert run_by_two(run_share, folder) == [0, 0]
    return {f: [json.loads((folder / f"{f}.{rank}.json").read_text()) for rank in (0, 1)] for f in FAULTS}


@pytest.fixture(params=["alone", "together"])
def runs(request) -> dict[str, list[dict]]:
    return request.getfixturevalue(request.param)


def finite(weights: list[float]) -> bool:
    return all(map(math.isfinite, weights))


@pytest.mark.parametrize("fault", ["sample", "gradient"])
def test_a_poisoned_batch_is_skipped_by_all_and_named(runs, fault):
    found = runs[fault]
    last = len(found) - 1
    for each in found:
        assert not each["stopped"] and each["end"] == found[0]["end"] == each["stored"] and finite(each["end"])
        assert each["first"] == runs["none"][0]["first"] and each["end"] != runs["none"][0]["end"]
    assert found[0]["text"].count("skipped (1 in a row)") == 1
    assert f"optimiser step {steps_of(len(found)) + POISONED} skipped" in found[0]["text"]
    names = [f"epoch2-{POISONED - 1}-{row}-rank{last}" for row in (0, 1)]
    assert all(name in found[0]["text"] for name in names)
    if fault == "sample" and last:  # the other process's batch is valid
        assert "rank0" not in found[0]["text"]
    assert [line["train"].get("skipped steps") for line in found[0]["log"]] == [None, 1]
    assert all(math.isfinite(line["train"]["loss"]) and line["train"]["loss"] > 1 for line in found[0]["log"])


@pytest.mark.parametrize("fault", ["weight", "rate"])
def test_a_diverged_run_stops_and_leaves_the_last_good_checkpoint(runs, fault):
    """A training with an invalid weight or an extreme rate stops, and its last good checkpoint remains.

    A weight that becomes invalid too late in an epoch for the limit of skipped steps is detected by the validation.
    """
    patience = 10 if len(runs[fault]) == 1 else PATIENCE
    steps = f"training stopped after {patience} unusable optimiser steps in a row; "
    batches = 2 * len(runs[fault])  # each process validates two batches of its own
    validation = f"training stopped: {batches} of {batches} validation batches have no usable loss; "
    expected = {"weight": validation, "rate": steps}
    for each in runs[fault]:
        assert each["stopped"].startswith(expected[fault]) and "log.txt" in each["stopped"]
        assert "the newest checkpoint is" in each["stopped"]
        assert each["stored"] == each["first"] == runs["none"][0]["first"] and finite(each["stored"])
    text = runs[fault][0]["text"]
    skipped = patience if fault == "rate" else steps_of(len(runs[fault])) - POISONED + 1
    assert f"skipped ({skipped} in a row)" in text and "not finite" in text
    assert len(runs[fault][0]["log"]) == 1


def test_a_good_run_skips_nothing(runs):
    for each in runs["none"]:
        assert not each["stopped"] and each["text"] == "" and each["end"] == each["stored"] != each["first"]
    assert all(line["valid"]["loss"] > 1 and "skipped steps" not in line["train"] for line in runs["none"][0]["log"])


def test_patience_is_an_option(tmp_path):
    assert run(tmp_path, "weight", nonfinite_patience=3)["stopped"].startswith("training stopped after 3 unusable")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_a_checkpoint_from_which_it_goes_on(tmp_path, number, monkeypatch):
    whole = run(tmp_path / "whole", "none", epochs=1)
    brain = brain_of(tmp_path / "stopped", 1)
    (tmp_path / "stopped").mkdir(exist_ok=True)
    start = brain.on_fit_batch_start

    def interrupted(batch, should_step):
        if brain.step == POISONED and not resumed:
            brain.request.note(number, None)  # simulates a signal; tests/recipes sends a real one
        start(batch, should_step)

    resumed = False
    brain.on_fit_batch_start = interrupted
    with pytest.raises(Stopped, match=f"by {number.name} after a checkpoint; start again") as caught:
        brain.fit(brain.hparams.epochs, batches(brain.model, "epoch1"), None, progressbar=False,
                  train_loader_kwargs={"batch_size": None})  # fmt: skip
    assert caught.value.status == 128 + number
    assert brain.step == POISONED
    again = brain_of(tmp_path / "stopped", 1)
    again.fit(again.hparams.epochs, batches(again.model, "epoch1"), loader(batches(again.model, "valid")[:2]),
              progressbar=False, train_loader_kwargs={"batch_size": None})  # fmt: skip
    assert again.optimizer_step == BATCHES
    assert [float(t.double().sum()) for t in again.model.state_dict().values()] == whole["end"]
    log = json.loads((tmp_path / "stopped" / "train_log.jsonl").read_text())
    assert {k: v for k, v in log["train"].items() if k != "seconds"} == {
        k: v for k, v in whole["log"][0]["train"].items() if k != "seconds"
    }


def test_gradients_keep_their_sign_without_a_limit(tmp_path):
    """A negative limit of the gradient norm means no limit, as in SpeechBrain; torch would multiply gradients by it."""
    brain = brain_of(tmp_path, 1, max_grad_norm=-1.0)
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), 100.0)
    brain.optimizer, brain.batches = torch.optim.SGD([weight], lr=0.01), [((), torch.tensor(False))]
    brain.unread, brain.log_steps = [], 2  # figures are not read
    brain.request = type("Nobody", (), {"signal": 0})
    brain.optimizers_step()
    assert torch.allclose(weight, torch.zeros(3), atol=1e-5)


def test_an_epoch_without_a_usable_batch_has_no_loss(tmp_path):
    brain = brain_of(tmp_path, 1)
    assert brain._figures(StreamSums(4)) == {}


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch):
    """Two signals in quick succession, as a scheduler and torchrun send, count as one request to stop the training."""
    now = [100.0]
    monkeypatch.setattr("omnikit.train.stop_signals.time.monotonic", lambda: now[0])
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as request:
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == request.note
        for now[0] in (100.0, 100.5):
            request.note(signal.SIGTERM, None)
        assert request.signal == signal.SIGTERM
        now[0] = 110.0
        with pytest.raises(Stopped, match="SIGTERM at once"):
            request.note(signal.SIGTERM, None)
    assert signal.getsignal(signal.SIGTERM) == before
