"""Tests of trainings by two processes: gradients, checkpoints that one process reads, shared validation, and hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rewriting import run_by_two
from torch.distributed import HashStore

from omnikit.torchrun import Share
from omnikit.train.distributed import check_distributed, in_order, own_share
from omnikit.train.loggers import flat
from omnikit.train.recipe_checks import check_stage
from omnikit.train.watchdog import Watchdog
from tests.unit.train import shares, stuck
from tests.unit.train.tiny_training import checkpoints

ROOT = Path(__file__).parents[3]


def torchrun(*words: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder of what two processes have trained, which also read a checkpoint that one process has written."""
    folder = tmp_path_factory.mktemp("shares")
    torch.save(shares.state_of(shares.train(folder / "alone", 1)), folder / "alone" / "state.pt")
    assert run_by_two(shares.run_share, folder) == [0, 0]
    return folder


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> Path:
    """Folder of what two processes have trained with LoRA, after checks of compiled blocks."""
    folder = tmp_path_factory.mktemp("lora")
    assert run_by_two(shares.run_long, folder) == [0, 0]
    return folder


def seconds_since_stop(folder: Path) -> float:
    return time.monotonic() - float((folder / "stopped").read_text())


def stored(folder: Path) -> Path:
    """Return the checkpoint that two processes have written, not one that a test has added."""
    return checkpoints(folder / "save")[0]


def valid_of(folder: Path) -> list[dict]:
    return [json.loads(line)["valid"] for line in (folder / "train_log.jsonl").read_text().splitlines()]


def test_one_process_resumes_what_two_have_written(folder):
    check_resuming(folder, "fsdp", sharded=True)


@pytest.mark.long
@pytest.mark.parametrize("name", shares.LORA)
def test_one_process_resumes_what_two_have_trained_with_lora(lora, name):
    check_resuming(lora, name, sharded=name == "lora-fsdp", lora=True)


def check_resuming(folder: Path, name: str, *, sharded: bool, lora: bool = False) -> None:
    assert (stored(folder / name) / "model.1.ckpt").exists() == sharded
    brain = shares.train(folder / name, 2, number=0, lora=lora)  # an epoch without training, then validation
    assert shares.same(shares.state_of(brain), torch.load(folder / name / "state.pt", weights_only=True))
    two, one = valid_of(folder / name)
    assert flat(one) == pytest.approx(flat(two), rel=1e-4)


@pytest.mark.long
def test_lora_learns_the_same_as_copies_and_as_shards(lora):
    first, second = (torch.load(lora / name / "state.pt", weights_only=True) for name in ("lora-ddp", "lora-fsdp"))
    assert any("lora" in key for key in first)
    assert all(torch.allclose(value, second[key], atol=1e-5) for key, value in first.items())


@pytest.mark.long
def test_frozen_weights_are_not_stored(lora):
    model = torch.load(stored(lora / "lora-ddp") / "model.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in model} == set(shares.TRAINED)
    assert all(".lora_" in name for name in model if name.startswith("llm."))


def test_shares_are_disjoint_and_come_back_in_order(monkeypatch):
    items, found = list(range(7)), []
    for rank in range(3):
        monkeypatch.setattr(Share, "of_torchrun", lambda rank=rank: Share(rank, 3))
        found.append(own_share(items))
    assert found == [[0, 3, 6], [1, 4], [2, 5]] and in_order(found) == items


def test_a_process_that_stands_still_is_named(tmp_path):
    assert 0 not in run_by_two(stuck.run_share, tmp_path) and seconds_since_stop(tmp_path) < 60
    message = "error: rank 1 has not finished a step for 0.1 minutes (--hang_timeout); stopping"
    texts = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert "".join(texts).count(message) == 1, texts


@pytest.mark.long
@pytest.mark.parametrize("how", ["die", "freeze"])
def test_a_process_that_is_gone_ends_the_others(tmp_path, how):
    ran = torchrun(stuck.__file__, tmp_path, how, 0.1)
    assert ran.returncode != 0 and seconds_since_stop(tmp_path) < 60
    assert how == "die" or "error: rank 1 has given no sign of life for 6 seconds; stopping" in ran.stderr


class Watched:
    """A watchdog of one of several processes, whose time passes by `look`."""

    def __init__(self, rank: int, processes: int, store: HashStore, monkeypatch, now: list[float]):
        monkeypatch.setattr(Share, "of_torchrun", lambda: Share(rank, processes))
        self.ended: list[int] = []
        self.watchdog = Watchdog(store, 10.0, self.ended.append)

    def publish(self, count: int) -> None:
        self.watchdog._publish(count)

    def look(self) -> None:
        self.watchdog._look()


@pytest.fixture
def watched(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("omnikit.train.watchdog.time.monotonic", lambda: now[0])
    store = HashStore()
    return now, [Watched(rank, 3, store, monkeypatch, now) for rank in range(3)]


def test_the_first_process_compares_all_of_them(watched, capsys):
    now, processes = watched
    for second in range(0, 640, 5):
        now[0] = second
        for rank, process in enumerate(processes):
            process.publish(second if second < 30 or rank == 9 else 30 - 5 * (rank == 2))
        processes[0].look()
        if processes[0].ended:
            break
    assert 620 < now[0] < 640 and processes[0].ended == [1]
    message = "error: rank 2 has not finished a step for 10 minutes (--hang_timeout); stopping\n"
    assert capsys.readouterr().err == message
    processes[1].look()
    assert processes[1].ended == [1] and capsys.readouterr().err == ""


def test_slow_steps_and_those_who_have_left_are_no_hang(watched):
    now, processes = watched
    for second in range(0, 3000, 5):
        now[0] = second
        processes[0].publish(second // 500)
        processes[1].publish(second // 500)
        processes[2].publish(-1)
        for process in processes:
            process.look()
    assert not any(process.ended for process in processes)


@pytest.mark.parametrize("gone", [0, 1])
def test_a_process_without_a_sign_of_life_is_gone(watched, capsys, gone):
    now, processes = watched
    for second in range(0, 100, 5):
        now[0] = second
        for rank, process in enumerate(processes):
            if rank != gone or second < 10:
                process.publish(second)
        for rank, process in enumerate(processes):
            if rank != gone or second < 10:
                process.look()
    assert capsys.readouterr().err.startswith(f"error: rank {gone} has given no sign of life for 45 seconds")
    assert all(process.ended for rank, process in enumerate(processes) if rank != gone)


def test_wrong_ways_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"--distributed zero: no such choice \(choices: ddp, fsdp\)"):
        check_stage({"distributed": "zero"})
    with pytest.raises(ValueError, match="--hang_timeout 0: must be above 0"):
        check_stage({"hang_timeout": 0})
    with pytest.raises(ValueError, match="--distributed fsdp: needs several processes"):
        check_distributed("fsdp", None)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="--precision fp16: does not fit"):
        check_distributed("fsdp", "fp16")
