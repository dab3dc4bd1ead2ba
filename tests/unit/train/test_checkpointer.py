"""Tests of training checkpoints that are damaged, unfinished, of an older version, or too large for the disk."""

from __future__ import annotations

import logging
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

from omnikit.train.checkpointer import WholeCheckpointer
from omnikit.train.checksums import SUMS, find_damage, write_sums
from omnikit.train.frozen_weights import fingerprints
from tests.unit.train import saver, tiny_training
from tests.unit.train.tiny_training import DAMAGES, FILES, checkpoints, same, train

ROOT = Path(__file__).parents[3]


def script(*words: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *map(str, words)], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    """Return the final weights and optimiser states of a training that was never interrupted."""
    return train(tmp_path_factory.mktemp("undamaged"))


@pytest.fixture(scope="module")
def _stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    train(folder / "new", epochs=2)
    train(folder / "old", epochs=2, kind=Checkpointer, num_to_keep=2)
    return folder


@pytest.fixture
def stopped(_stopped, tmp_path):
    """Return a folder with the checkpoints of a training that was stopped after its second epoch."""
    return shutil.copytree(_stopped / "new", tmp_path / "save")


@pytest.fixture
def old(_stopped, tmp_path):
    """Return a folder of checkpoints of a stopped training in the older format, without checksums."""
    folder = shutil.copytree(_stopped / "old", tmp_path / "old")
    for path in checkpoints(folder):
        (path / "WHOLE").touch()
    return folder


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "omnikit" in r.name]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(name, damage, stopped, undamaged, caplog):
    before, newest = checkpoints(stopped)
    DAMAGES[damage](newest / name)
    assert same(train(stopped), undamaged)
    (warning,) = warnings(caplog)
    assert str(newest) in warning and name in warning
    assert any(f"Loading a checkpoint from {before}" in record.getMessage() for record in caplog.records)
    left = checkpoints(stopped)  # a new one may have the name of the damaged one, if it is of the same second
    assert len(left) == 2 and [find_damage(path) for path in left] == [None, None]


def test_an_undamaged_one_is_taken_without_a_warning(stopped, undamaged, caplog):
    newest = checkpoints(stopped)[-1]
    assert same(train(stopped), undamaged)
    assert not warnings(caplog)
    assert any(f"Loading a checkpoint from {newest}" in record.getMessage() for record in caplog.records)


def test_with_no_whole_one_left_it_stops_in_one_line(stopped):
    for path, name in zip(checkpoints(stopped), ("model.ckpt", SUMS), strict=True):
        DAMAGES["truncated"](path / name)
    with pytest.raises(ValueError, match="no whole checkpoint is left") as caught:
        train(stopped)
    assert str(stopped) in str(caught.value) and "delete the folder" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(list(stopped.iterdir())) == 2


def test_all_that_is_damaged_is_named_once(stopped, caplog):
    for path in checkpoints(stopped):
        DAMAGES["inverted"](path / "optimizer.ckpt")
    checkpointer = WholeCheckpointer(stopped)
    for _ in range(2):
        with pytest.raises(ValueError, match="another sum"):
            checkpointer.find_checkpoint()
    assert len(warnings(caplog)) == 2


def test_unfinished_ones_are_passed_over_and_removed_at_the_next_save(stopped, undamaged, caplog):
    half, deleted = stopped / "unfinished-CKPT+2030-01-01+00-00-00+00", stopped / "unfinished-CKPT+2000"
    for folder in (half, deleted):
        shutil.copytree(checkpoints(stopped)[-1], folder)
    assert same(train(stopped), undamaged)
    assert not warnings(caplog)
    assert sorted(stopped.iterdir()) == sorted(checkpoints(stopped))


def test_other_folders_are_left_alone(stopped):
    other = stopped / "CKPT of mine"
    other.mkdir()
    train(stopped)
    assert other.exists()


def test_without_a_finished_one_it_begins_anew_and_says_so(tmp_path, undamaged, caplog):
    (tmp_path / "unfinished-CKPT+2026").mkdir()
    assert same(train(tmp_path), undamaged)
    assert "training begins anew" in "".join(warnings(caplog))


def test_the_newest_two_are_kept_whatever_else_is_asked_for(tmp_path):
    checkpointer = WholeCheckpointer(tmp_path, {"model": torch.nn.Linear(1, 1)})
    for loss in (1.0, 3.0, float("nan"), 2.0, float("nan")):
        checkpointer.save_and_keep_only(meta={"loss": loss}, num_to_keep=1)
    assert [str(c.meta["loss"]) for c in checkpointer.find_checkpoints()] == ["nan", "2.0"]
    for loss in (0.5, 4.0, 5.0):
        checkpointer.save_and_keep_only(meta={"loss": loss}, num_to_keep=1, keep_recent=False, min_keys=["loss"])
    losses = [c.meta["loss"] for c in checkpointer.find_checkpoints() if c.meta["loss"] > 0]
    assert losses == [5.0, 4.0, 0.5]


@pytest.mark.parametrize("size", [10, 1500], ids=["in a text", "in a tensor"])
def test_a_full_disk_leaves_the_checkpoints_as_they_were(size, tmp_path):
    checkpointer = WholeCheckpointer(tmp_path, {"model": torch.nn.Linear(10, 100)})
    first = checkpointer.save_checkpoint()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(ValueError, match="cannot be written") as caught:
            checkpointer.save_checkpoint()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [first.path]
    assert checkpointer.find_checkpoint().path == first.path
    checkpointer.save_and_keep_only()
    assert len(checkpoints(tmp_path)) == 2


def test_other_errors_of_torch_are_not_taken_for_a_full_disk(tmp_path):
    def fail(model, path):
        raise RuntimeError("CUDA error")

    checkpointer = WholeCheckpointer(tmp_path, {"model": torch.nn.Linear(1, 1)}, custom_save_hooks={"model": fail})
    with pytest.raises(RuntimeError, match="CUDA error"):
        checkpointer.save_checkpoint()


def test_all_is_on_the_disk_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    flushed = []

    def fsync(number):
        inode = os.fstat(number).st_ino
        path = next(path for path in (tmp_path, *tmp_path.rglob("*")) if path.stat().st_ino == inode)
        assert not checkpoints(tmp_path) or path == tmp_path
        flushed.append(path.name)

    monkeypatch.setattr("omnikit.train.checksums.os.fsync", fsync)
    saved = WholeCheckpointer(tmp_path, {"model": torch.nn.Linear(1, 1)}).save_checkpoint()
    folder = f"unfinished-{saved.path.name}"
    assert sorted(flushed[:2]) == ["CKPT.yaml", "model.ckpt"]
    assert flushed[2:] == [SUMS, folder, tmp_path.name]


class Stranger:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a checkpoint ran')",)


def test_a_checkpoint_with_code_is_refused(stopped):
    newest = checkpoints(stopped)[-1]
    torch.save({"weight": Stranger()}, newest / "model.ckpt", pickle_module=pickle)
    (newest / SUMS).unlink()
    write_sums(newest)
    with pytest.raises(ValueError, match="not a checkpoint of a training"):
        train(stopped)


def test_one_without_sums_is_loaded_and_said_to_be_unverified(old, undamaged, caplog):
    newest = checkpoints(old)[-1]
    assert same(train(old), undamaged)
    (warning,) = warnings(caplog)
    assert str(newest) in warning and "no sums" in warning
    assert all((path / SUMS).exists() for path in checkpoints(old))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [name for name in FILES if name not in (SUMS, "dataloader-TRAIN.ckpt")])
def test_one_without_sums_gives_way_where_damage_shows(name, damage, old, caplog):
    before, newest = checkpoints(old)
    DAMAGES[damage](newest / name)
    saved = ("model", "epochs", "brain", "optimizer")
    assert WholeCheckpointer(old, dict.fromkeys(saved)).find_checkpoint().path == before
    assert any(str(newest) in warning and name in warning for warning in warnings(caplog))


def test_the_mark_of_a_checkpoint_with_sums_cannot_get_lost(stopped):
    """A checkpoint that has lost its file of checksums is passed over, not taken for one of an older version."""
    newest = checkpoints(stopped)[-1]
    (newest / SUMS).unlink()
    assert WholeCheckpointer(stopped).find_checkpoint().path != newest


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=pytest.mark.long)])
def test_a_kill_never_costs_a_checkpoint_that_was_saved(kills, tmp_path):
    ran = script(saver.__file__, tmp_path, kills, 1)
    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = ran.stdout.splitlines()
    assert len(lines) == kills
    assert any("unfinished" in line for line in lines)  # some kills came while a checkpoint was written


@pytest.mark.long
def test_all_processes_take_the_same_checkpoint(tmp_path):
    def run(folder: Path, epochs: int) -> tuple[list[torch.Tensor], str]:
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, tiny_training.__file__]
        ran = script(*words, folder, epochs, tmp_path)
        assert ran.returncode == 0, ran.stderr[-3000:]
        ends = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
        assert same(*ends)
        return ends[0], ran.stderr

    whole, _ = run(tmp_path / "whole", tiny_training.EPOCHS)
    run(tmp_path / "damaged", 2)
    before, newest = checkpoints(tmp_path / "damaged")
    DAMAGES["inverted"](newest / "model.ckpt")
    end, said = run(tmp_path / "damaged", tiny_training.EPOCHS)
    assert same(end, whole)
    assert said.count(f"{newest}: damaged") == 1
    assert f"Loading a checkpoint from {before}" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(stopped, value):
    """Training does not save weights that are not finite, and keeps the existing checkpoints."""
    model = torch.nn.Linear(4, 4)
    checkpointer = WholeCheckpointer(stopped, {"model": model})
    before = checkpoints(stopped)
    model.bias.data[2] = value
    with pytest.raises(ValueError, match=r"no checkpoint is saved: model: has numbers that are not finite .* bias"):
        checkpointer.save_and_keep_only()
    assert checkpoints(stopped) == before


def test_weights_may_change_while_they_are_written_aside(tmp_path, monkeypatch):
    """A checkpoint that is written while training goes on holds the weights, states and counters of its moment."""
    model, counter = torch.nn.Linear(4, 4), EpochCounter(9)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4)).sum().backward()
    optimizer.step()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    writing, saved = threading.Event(), torch.save

    def slow(*arguments):
        writing.wait(10)
        saved(*arguments)

    monkeypatch.setattr("omnikit.train.checkpointer.torch.save", slow)
    recoverables = {"model": model, "optimizer": optimizer, "epochs": counter}
    checkpointer = WholeCheckpointer(tmp_path, recoverables)
    counter.current = 3
    checkpointer.save_and_keep_only(aside=True)
    optimizer.step()
    counter.current = 4
    assert not checkpoints(tmp_path)
    writing.set()
    checkpointer.join()
    again = WholeCheckpointer(tmp_path, recoverables)
    assert again.recover_if_possible() is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert counter.current == 3
    assert all(float(state["step"]) == 1 for state in optimizer.state_dict()["state"].values())


def test_the_next_save_waits_and_deletes_as_if_none_was_aside(tmp_path):
    checkpointer = WholeCheckpointer(tmp_path, {"model": torch.nn.Linear(1, 1)})
    for loss in (1.0, 3.0, 2.0, 4.0):
        checkpointer.save_and_keep_only(meta={"loss": loss}, aside=True)
    assert [c.meta["loss"] for c in checkpointer.find_checkpoints()] == [4.0, 2.0]
    assert sorted(tmp_path.iterdir()) == sorted(checkpoints(tmp_path))


def test_a_full_disk_is_told_by_the_next_look(tmp_path, monkeypatch):
    checkpointer = WholeCheckpointer(tmp_path, {"model": torch.nn.Linear(10, 100)})
    first = checkpointer.save_checkpoint()
    monkeypatch.setattr("omnikit.train.checkpointer.torch.save", full)
    checkpointer.save_and_keep_only(aside=True)
    while checkpointer._writer.error is None:
        time.sleep(0.01)
    with pytest.raises(ValueError, match=f"{tmp_path}: cannot be written .*MB are free"):
        checkpointer.check()
    checkpointer.check()  # told once
    assert list(tmp_path.iterdir()) == [first.path]


def full(*_):
    raise RuntimeError("[enforce fail at inline_container.cc:1] . PytorchStreamWriter failed writing file data/0")


class Two(torch.nn.Module):
    """Two parts, one of them frozen, as in a system."""

    frozen = ("encoder",)

    def __init__(self, value: float = 1.0):
        super().__init__()
        self.encoder, self.llm = torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)
        self.encoder.requires_grad_(False).weight.fill_(value)


def test_frozen_weights_are_known_by_their_fingerprint(tmp_path):
    WholeCheckpointer(tmp_path, {"model": Two()}).save_checkpoint()
    stored = torch.load(checkpoints(tmp_path)[0] / "model.ckpt", weights_only=True)
    assert stored.keys() == {"llm.weight", "llm.bias"}
    same, other = Two(), Two(1.0001)
    WholeCheckpointer(tmp_path, {"model": same}).recover_if_possible()
    assert torch.equal(same.llm.weight, stored["llm.weight"])
    with pytest.raises(ValueError, match=r"CKPT\S+: belongs to other frozen weights of encoder; start") as caught:
        WholeCheckpointer(tmp_path, {"model": other}).recover_if_possible()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_with_frozen_weights_in_it_is_loaded(tmp_path):
    Checkpointer(tmp_path, {"model": Two(7.0)}).save_checkpoint()
    model = Two()
    WholeCheckpointer(tmp_path, {"model": model}).recover_if_possible()
    assert model.encoder.weight.tolist() == [7.0] * 3


def test_stored_weights_that_do_not_fit_are_refused_in_one_line(tmp_path):
    WholeCheckpointer(tmp_path, {"model": torch.nn.Linear(2, 3)}).save_checkpoint()
    for other, words in ((torch.nn.Linear(2, 4), "has another shape of weight, bias"),
                         (torch.nn.Linear(2, 3, bias=False), "has the unknown bias")):  # fmt: skip
        with pytest.raises(ValueError, match=f"CKPT.*: does not fit Linear: {words}"):
            WholeCheckpointer(tmp_path, {"model": other}).recover_if_possible()


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_fingerprint_tells_values_and_places(shape, dtype):
    rng = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2, shape, generator=rng).to(dtype)
    module = torch.nn.Module()
    module.frozen = ("part",)
    module.part = torch.nn.Module()
    module.part.register_buffer("table", values)
    first = fingerprints(module)
    assert first == fingerprints(module) and first.keys() == {"part"}
    flat = values.view(-1)
    flat[0] = flat[0] == 0
    changed = fingerprints(module)
    assert changed != first
    for place in (flat != flat[0]).nonzero()[:1, 0]:  # the same values in another order
        flat[0], flat[place] = flat[place].clone(), flat[0].clone()
        assert fingerprints(module) not in (first, changed)
