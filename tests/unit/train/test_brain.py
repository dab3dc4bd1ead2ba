"""Tests of the learning rate, the mean losses and the parameter table of a training."""

from __future__ import annotations

import io
import itertools
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from omnikit.losses import StreamLosses
from omnikit.tasks import TASK_NAMES
from omnikit.train.brain import OmniBrain, _rounded, cosine_rate, parameter_table
from omnikit.train.checkpointer import WholeCheckpointer
from omnikit.train.epoch_progress import EpochProgress, StreamSums, named_streams
from omnikit.train.robust_brain import RobustBrain
from tests.unit.toy import toy_model

RATE = {"peak": 1e-3, "lowest": 1e-5, "warmup": 10, "total": 110}


def test_rate_warms_up_and_falls_to_the_lowest():
    rates = [cosine_rate(step, **RATE) for step in range(130)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == max(rates) == pytest.approx(1e-3)
    assert rates[60] == pytest.approx((1e-3 + 1e-5) / 2)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[110:] == pytest.approx([1e-5] * 20)


def losses_of(sums: list[float], counts: list[int], task: str = "A1A2") -> StreamLosses:
    """Return the losses of a batch of one task with these sums and label counts of the streams."""
    alone = torch.zeros(len(TASK_NAMES), 1, dtype=torch.long)
    alone[TASK_NAMES.index(task)] = 1
    return StreamLosses(alone * torch.tensor(sums), alone * torch.tensor(counts))


def summed(*batches: tuple[list[float], list[int]]) -> StreamSums:
    sums = StreamSums(len(batches[0][0]))
    for batch in batches:
        sums.add(losses_of(*batch))
    return sums


def test_means_count_labels_and_streams_without_any_are_absent():
    sums = summed(([2.0, 4.0, 0.0], [2, 2, 0]), ([9.0, 0.0, 0.0], [3, 0, 0]))
    sums.add(losses_of([torch.nan, 1.0, 1.0], [2, 2, 2]), usable=torch.tensor(False))
    assert sums.means() == {"text": 11 / 5, "audio1": 2.0}
    assert named_streams(sums.late.tolist()) == {"text": pytest.approx(0.95 * 1 + 0.05 * 3), "audio1": 2.0}


def test_each_task_has_its_share_of_the_labels_and_its_loss():
    sums = StreamSums(3)
    for batch in (([6.0, 0.0, 0.0], [3, 0, 0], "A1T1"), ([4.0, 8.0, 12.0], [2, 4, 4]), ([1.0, 8.0, 4.0], [3, 4, 0])):
        sums.add(losses_of(*batch))
    assert sums.by_task(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)) == {
        "A1T1": {"labels": 3 / 20, "loss": 2.0},
        "A1A2": {"labels": 17 / 20, "loss": pytest.approx((2 * 5 / 5 + 16 / 8 + 16 / 4) / 4)},
    }


def test_nested_figures_of_the_log():
    figures = {"loss": 1.234567, "tasks": {"A1T1": {"labels": 0.333333, "loss": 2}}}
    assert _rounded(figures) == {"loss": 1.23457, "tasks": {"A1T1": {"labels": 0.33333, "loss": 2}}}


def test_a_resumed_epoch_reports_all_of_it(tmp_path):
    whole, first, second = EpochProgress(2), EpochProgress(2), EpochProgress(2)
    batches = [([0.1, 0.2], [3, 1]), ([0.7, 0.0], [5, 0]), ([1.3, 0.4], [2, 2])]
    whole.sums, first.sums = summed(*batches), summed(*batches[:2])
    first.steps, first.skipped, first.before = 7, 2, 100.0
    first.save(tmp_path / "progress")
    second.load(tmp_path / "progress", end_of_epoch=False)
    second.sums.add(losses_of(*batches[2]))
    assert second.sums.means() == whole.sums.means()
    assert second.steps == 7 and second.skipped == 2 and second.seconds >= 100
    second.load(tmp_path / "progress", end_of_epoch=True)
    assert second.sums.means() == {} and second.steps == second.skipped == 0 and second.seconds < 100


def test_table_says_what_trains_and_where_weights_come_from():
    console = Console(width=120, file=io.StringIO())
    console.print(parameter_table(toy_model(tts_blocks=1), ["adapter"], {"llm": "some/folder"}))
    lines = console.file.getvalue().splitlines()
    assert any("adapter" in line and "trainable" in line and "random" in line for line in lines)
    assert any("llm" in line and "frozen" in line and "some/folder" in line for line in lines)


def test_no_checkpoint_within_an_optimiser_step_or_before_flags_are_read():
    brain = OmniBrain.__new__(OmniBrain)
    nothing_failed = SimpleNamespace(check=lambda: None)
    options = {"ckpt_interval_minutes": 0.0, "ckpt_interval_steps": 1, "checkpointer": nothing_failed}
    for batches, unread in (([], []), (["first of a step"], []), ([], ["flags"])):
        vars(brain).update(options, batches=batches, unread=unread)
        assert brain._should_save_intra_epoch_ckpt(0.0, 1) == (not batches and not unread)


def test_checkpoints_within_an_epoch_take_the_place_of_the_last_epoch_s(tmp_path):
    brain = RobustBrain.__new__(RobustBrain)
    brain.checkpointer = WholeCheckpointer(tmp_path, {"model": torch.nn.Linear(1, 1)})
    brain.checkpointer.save_and_keep_only()
    for _ in range(3):
        brain._save_intra_epoch_ckpt()
    assert [c.meta["end-of-epoch"] for c in brain.checkpointer.find_checkpoints()] == [False, False]
