"""Tests of the data loaders of a training: worker processes, their errors and signals, and the waiting time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from omnikit.data.collate import Batch
from omnikit.data.manifest_writer import ManifestWriter
from omnikit.data.micro_batch import MicroBatch
from omnikit.data.samples import collate_items, make_dataset
from omnikit.data.sources import read_sources
from omnikit.errors import Stopped, Unwritable
from omnikit.tasks import TASK_NAMES
from omnikit.train.loader import BatchLoader, batch_loader, workers_for
from omnikit.train.waiting import Waiting
from tests.unit.data.test_collate import tensors_of
from tests.unit.rewriting import sound
from tests.unit.toy import toy_model

MODEL = toy_model()
BATCHES = [[0, 5, 2], [1], [7, 3]]


class Sampled:
    """A batch sampler of a training, whose micro-batches know their optimiser step."""

    def __len__(self) -> int:
        return len(BATCHES)

    def __iter__(self):
        labels = np.arange(2 * len(TASK_NAMES)).reshape(-1, 2)
        return (MicroBatch(each, labels + n, n == 1) for n, each in enumerate(BATCHES))


@pytest.fixture
def samples(tmp_path: Path):
    """Return eight samples: recognition of four recordings, which training is to encode, and four written answers."""
    entries = [
        {"id": str(i), "duration": 0.1 + 0.07 * i, "t1": text, "t2": "no", "a1": f"{i}.wav"}
        for i, text in enumerate(["what is red", "the cat", "a dog sees the cat", "yes"])
    ]
    for i, entry in enumerate(entries):
        (tmp_path / entry["a1"]).write_bytes(sound(entry["duration"], i))
    with ManifestWriter(tmp_path / "m.csv", list(entries[0])) as writer:
        writer.write(entries)
    tasks = {"A1T1": 1.0, "T1T2": 1.0}
    options = {"qa": {"manifest": tmp_path / "m.csv", "tasks": list(tasks)}}
    read = read_sources(options, MODEL, tasks=tasks, cache_folder=tmp_path / "cache", features="on_the_fly")
    return make_dataset(MODEL, read, tasks)


def equal(one: Batch, two: Batch) -> bool:
    pairs = list(zip(tensors_of(one), tensors_of(two), strict=True))
    same = (one.sizes, one.ends_step, one.ids) == (two.sizes, two.ends_step, two.ids)
    return same and len(pairs) == 15 and all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_of_each_start_method_yield_the_same_batches_in_each_epoch(method: str, samples):
    expected = [collate_items(MODEL)(samples.__getitems__(each)) for each in Sampled()]
    alone = batch_loader(samples, Sampled(), MODEL, num_workers=0, device="cpu")
    assert all(equal(*pair) for pair in zip(alone, expected, strict=True))
    state = torch.get_rng_state()
    loader = batch_loader(samples, Sampled(), MODEL, num_workers=1, device="cpu", method=method)
    for _ in range(2):
        assert all(equal(*pair) for pair in zip(loader, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), state)  # the batches of a training do not depend on earlier iterations
    assert [batch.ends_step for batch in expected] == [False, True, False] and len(loader) == 3


class Numbers(Dataset):
    """A data set of numbers, whose items do what a test asks for."""

    def __init__(self, does=None):
        self.does = does

    def __len__(self) -> int:
        return 100

    def __getitems__(self, indices: list[int]) -> list:
        return [self.does(index) if self.does else index for index in indices]


def loader_of(does=None, workers: int = 1, batches: int = 4) -> BatchLoader:
    return BatchLoader(Numbers(does), [[n] for n in range(batches)], list, workers=workers, method="fork")


def test_workers_stay_and_use_one_thread():
    loader = loader_of(lambda index: (os.getpid(), torch.get_num_threads()), workers=2)
    first, second = list(loader), list(loader)
    assert {each[0] for each in first} == {each[0] for each in second}
    assert len({each[0][0] for each in first} - {os.getpid()}) == 2 and {each[0][1] for each in first} == {1}


def odd(index: int) -> int:
    raise Unwritable("some/file", f"number {index}")


def wrong(index: int) -> int:
    raise ValueError(f"entry {index}: is wrong")


def broken(index: int) -> int:
    return {}[index]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_workers_are_those_of_the_main_process(workers: int):
    for does, kind, words in (
        (wrong, ValueError, "entry 0: is wrong"),
        (odd, ValueError, "some/file: cannot be written number 0"),
        (broken, KeyError, "0"),
    ):
        with pytest.raises(kind) as caught:
            list(loader_of(does, workers))
        assert str(caught.value) == words
        assert not workers or does.__name__ in caught.value.__notes__[0]

    def refused(items):
        raise ValueError("no batch")

    with pytest.raises(ValueError, match=r"^no batch"):
        list(BatchLoader(Numbers(), [[0]], refused, workers=workers, method="fork"))


def killed(index: int) -> int:
    if index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return index


def test_a_killed_worker_stops_the_run_in_one_line():
    with pytest.raises(Stopped, match=r"^a worker process that prepares batches ended .* --num_workers than 1$"):
        list(loader_of(killed))


def test_signals_to_all_processes_leave_the_workers_working():
    """A signal from elsewhere than the parent must not end a worker, and one from the parent must."""
    loader = loader_of(lambda index: os.getpid(), batches=8)
    batches = iter(loader)
    worker = next(batches)[0]
    for number in (signal.SIGINT, signal.SIGTERM):
        other = multiprocessing.get_context("fork").Process(target=os.kill, args=(worker, number))
        other.start()
        other.join()
    time.sleep(0.3)
    assert [each[0] for each in batches] == [worker] * 7
    process = next(each for each in multiprocessing.active_children() if each.pid == worker)
    process.terminate()
    process.join(5)
    assert process.exitcode == 0


def slow(index: int) -> int:
    time.sleep(0.1)
    return index


def test_waiting_is_the_time_of_a_slow_data_set():
    loader = loader_of(slow, workers=0, batches=3)
    for _ in range(2):  # each iteration is measured from its beginning
        began = time.perf_counter()
        for _ in loader:
            time.sleep(0.05)
        share, whole = loader.waiting.share(), time.perf_counter() - began
        assert 0.3 <= loader.waiting.seconds <= whole - 0.15
        assert share == pytest.approx(loader.waiting.seconds / whole, abs=0.02)
    loader.waiting.reset()
    assert loader.waiting.seconds == 0 == loader.waiting.share()


def test_workers_hide_the_time_of_a_slow_data_set():
    loader = loader_of(slow, workers=2, batches=6)
    list(loader)  # starts the workers
    for number, _ in enumerate(loader):
        if not number:
            loader.waiting.reset()
        time.sleep(0.2)
    assert loader.waiting.share() < 0.3


def test_waiting_counts_the_time_of_an_error():
    waiting = Waiting()
    with pytest.raises(KeyError), waiting.timed():
        time.sleep(0.05)
        raise KeyError
    assert 0.05 <= waiting.seconds < 0.2


def test_the_automatic_number_of_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(24), raising=False)
    assert workers_for(torch.device("cpu")) == 0 and workers_for(torch.device("cuda")) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert workers_for(torch.device("cuda", 1)) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "48")
    assert workers_for(torch.device("cuda")) == 1


def test_batches_are_copied_without_a_change_of_sizes(samples):
    batch = next(iter(batch_loader(samples, Sampled(), MODEL, num_workers=0, device="cpu")))
    assert batch.recorded.tolist() == [0, 2] and batch.sizes.wav_samples == batch.wav_lengths.sum() > 0
    assert equal(batch.to("cpu"), batch) and not equal(replace(batch, ids=()), batch)
