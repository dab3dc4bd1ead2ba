"""Tests that benchmarks that need a corpus or a GPU also run on the mini corpus' layout and on a CPU."""

from __future__ import annotations

import json
import shutil

import pytest


@pytest.mark.long
def test_fewer_bits_of_a_system(run, untrained, data, tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="omnikit[openvino] is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "manifests").mkdir()
    shutil.copytree(data / "qa", tmp_path / "qa")
    shutil.copy(data / "manifests" / "dev-clean.csv", tmp_path / "manifests" / "test-clean.csv")
    shutil.copy(data / "qa" / "dev.parquet", tmp_path / "qa" / "test_unseen.parquet")
    done = run("benchmarks/precision.py", "--checkpoint", untrained, "--data_folder", tmp_path, "--answers", 1)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" | ") for line in done.stdout.splitlines()]
    assert lines[0] == ["4 utterances, 4 questions, 1 answers compared"]
    rows = {cells[0].strip("| "): cells[1:] for cells in lines[4:]}
    assert list(rows) == ["torch, float32", "torch, bfloat16", "openvino, f32", "openvino, bf16", "openvino, int8"]
    assert rows["torch, float32"][:3] == ["0", "100.0", "100.0"]
    assert float(rows["openvino, f32"][0]) < 0.2 < float(rows["openvino, int8"][0])


@pytest.mark.long
def test_steps_of_the_engines_of_torch(run, tmp_path):
    done = run("benchmarks/gpu.py", "--quick", "--device", "cpu", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    steps = {(one["engine"], one["streams"]): one["ms"] for one in figures if one["name"] == "step"}
    assert set(steps) == {("torch", 1), ("torch", 16), ("static", 1), ("static", 16)}
    assert all(len(ms) == 2 and min(ms) > 0 for ms in steps.values())
    assert {one["engine"] for one in figures if one["name"] == "first sound"} == {"torch", "static"}
    assert all(one["error"] < 1e-6 for one in figures if one["name"] == "replay")  # both are run on a CPU
    assert "| 16 | 200 |" in done.stdout


@pytest.mark.long
def test_a_later_start_takes_seconds(run):
    done = run("benchmarks/index.py", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("(goal: at most 5 s)") == 2
    assert "features: by row groups / by position" in done.stdout.splitlines()[-1]


@pytest.mark.long
def test_batches_are_made_faster_than_by_the_earlier_code(run):
    done = run("benchmarks/loader.py", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    ratios = [line for line in done.stdout.splitlines() if line.endswith("(goal 2)")]
    assert len(ratios) == 3 and "features of questions: " in done.stdout


def test_augmentation_is_timed(run):
    done = run("benchmarks/augment.py", "--recordings", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rooms: " in done.stdout and "recordings per CPU second" in done.stdout and "  room " in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("name", ["sampler", "index"])
def test_benchmarks_of_data_meet_their_goals(run, name):
    done = run(f"benchmarks/{name}.py", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_training_steps_of_all_loops(run):
    done = run("benchmarks/train_step.py", "--quick", "--device", "cpu", "--parts", "bare", "recipe")
    assert done.returncode == 0 and "0 parts failed" in done.stdout, done.stdout + done.stderr
    assert all(f"| {stage} | 1024 | recipe |" in done.stdout for stage in ("stage 1", "stage 3"))
