"""Tests of the learning rate, the mean losses and the parameter table of a training."""

from __future__ import annotations

import io
import itertools
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from omnikit.losses import StreamLosses
from omnikit.train.brain import OmniBrain, cosine_rate, parameter_table
from omnikit.train.checkpointer import WholeCheckpointer
from omnikit.train.epoch_progress import EpochProgress, StreamSums
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


def summed(*batches: tuple[list[float], list[int]]) -> StreamSums:
    sums = StreamSums(len(batches[0][0]))
    for each, counts in batches:
        sums.add(StreamLosses(torch.tensor(each), torch.tensor(counts)))
    return sums


def test_means_count_labels_and_streams_without_any_are_absent():
    sums = summed(([2.0, 4.0, 0.0], [2, 2, 0]), ([9.0, 0.0, 0.0], [3, 0, 0]))
    assert sums.means() == {"text": 11 / 5, "audio1": 2.0}
    assert sums.recent() == {"text": pytest.approx(0.95 * 1 + 0.05 * 3), "audio1": 2.0}


def test_a_resumed_epoch_reports_all_of_it(tmp_path):
    whole, first, second = EpochProgress(2), EpochProgress(2), EpochProgress(2)
    batches = [([0.1, 0.2], [3, 1]), ([0.7, 0.0], [5, 0]), ([1.3, 0.4], [2, 2])]
    whole.sums, first.sums = summed(*batches), summed(*batches[:2])
    first.skipped, first.before = 2, 100.0
    first.save(tmp_path / "progress")
    second.load(tmp_path / "progress", end_of_epoch=False)
    second.sums.add(StreamLosses(*map(torch.tensor, batches[2])))
    assert second.sums.means() == whole.sums.means()
    assert second.skipped == 2 and second.seconds >= 100
    second.load(tmp_path / "progress", end_of_epoch=True)
    assert second.sums.means() == {} and second.skipped == 0 and second.seconds < 100


def test_table_says_what_trains_and_where_weights_come_from():
    console = Console(width=120, file=io.StringIO())
    console.print(parameter_table(toy_model(tts_blocks=1), ["adapter"], {"llm": "some/folder"}))
    lines = console.file.getvalue().splitlines()
    assert any("adapter" in line and "trainable" in line and "random" in line for line in lines)
    assert any("llm" in line and "frozen" in line and "some/folder" in line for line in lines)


def test_no_checkpoint_between_two_batches_of_an_optimiser_step():
    brain = OmniBrain.__new__(OmniBrain)
    checkpointer = SimpleNamespace(check=lambda: None)
    options = {"ckpt_interval_minutes": 0.0, "ckpt_interval_steps": 1, "checkpointer": checkpointer}
    vars(brain).update(options, grad_accumulation_factor=3)
    saved = []
    for brain.step in range(1, 8):
        if brain._should_save_intra_epoch_ckpt(0.0, 1):
            saved.append(brain.step)
    assert saved == [3, 6]


def test_checkpoints_within_an_epoch_take_the_place_of_the_last_epoch_s(tmp_path):
    brain = RobustBrain.__new__(RobustBrain)
    brain.checkpointer = WholeCheckpointer(tmp_path, {"model": torch.nn.Linear(1, 1)})
    brain.checkpointer.save_and_keep_only()
    for _ in range(3):
        brain._save_intra_epoch_ckpt()
    assert [c.meta["end-of-epoch"] for c in brain.checkpointer.find_checkpoints()] == [False, False]
