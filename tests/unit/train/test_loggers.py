"""Test that the figures of each epoch reach TensorBoard and Weights & Biases, one or both, under flat names."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from omnikit.train.loggers import Loggers, flat
from omnikit.train.recipe_checks import check_wandb
from omnikit.train.tensorboard import TensorBoard

WHERE = {"stage": "stage 1", "parts": {"llm": "mini"}, "epoch": 1, "step": 40}
TRAIN = {"loss": 2.0, "tasks": {"A1T1": {"labels": 0.4, "loss": 1.5}}, "speed": {"positions_per_second": 99.0}}


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package wandb, which records what is sent."""
    module = ModuleType("wandb")
    module.__spec__ = object()
    module.begun, module.sent = [], []

    class Run:
        def log(self, figures, step):
            module.sent.append((figures, step))

    def init(**options):
        module.begun.append(options)
        return Run()

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_nested_figures_get_flat_names():
    assert flat(TRAIN) == {
        "loss": 2.0, "tasks/A1T1/labels": 0.4, "tasks/A1T1/loss": 1.5, "speed/positions_per_second": 99.0,
    }  # fmt: skip


def test_both_loggers_get_the_figures(tmp_path, wandb):
    loggers = Loggers(tensorboard=TensorBoard(str(tmp_path / "tb")), wandb="mine", output_folder=str(tmp_path))
    loggers.log_stats(WHERE, TRAIN, {"loss": 3.0})
    figures, step = wandb.sent[0]
    assert step == 40
    assert figures == {
        "epoch": 1, "train/loss": 2.0, "train/tasks/A1T1/labels": 0.4, "train/tasks/A1T1/loss": 1.5,
        "train/speed/positions_per_second": 99.0, "valid/loss": 3.0,
    }  # fmt: skip
    loggers.loggers[0].logger.writer.flush()
    seen = EventAccumulator(str(tmp_path / "tb")).Reload().Tags()["scalars"]
    assert any("tasks/A1T1/loss" in tag for tag in seen)


def test_a_resumed_training_goes_on_in_the_same_run(tmp_path, wandb):
    options = {"project": "mine", "mode": "offline", "name": "first"}
    for epoch in (1, 2):
        resumed = Loggers(tensorboard=None, wandb=options, output_folder=str(tmp_path))
        resumed.log_stats({**WHERE, "epoch": epoch}, TRAIN, {})
    first, second = wandb.begun
    assert first == second
    assert (first["mode"], first["name"], first["resume"], first["dir"]) == ("offline", "first", "allow", str(tmp_path))
    assert first["config"] == {"stage": "stage 1", "parts": {"llm": "mini"}}
    assert len(first["id"]) == 8


def test_without_the_package_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("omnikit.train.weights_and_biases.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^--wandb mine: needs the Python package wandb: pip install omnikit\[wandb"):
        Loggers(tensorboard=None, wandb="mine", output_folder=str(tmp_path))


def test_all_loggers_can_be_off(tmp_path):
    Loggers(tensorboard=None, wandb=None, output_folder=str(tmp_path)).log_stats(WHERE, TRAIN, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [True, 3, "", ["mine"]])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=r"--wandb .*: must be the name of a project"):
        check_wandb(options)
    check_wandb(None)
    check_wandb({"project": "mine"})
