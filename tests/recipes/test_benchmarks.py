"""The benchmark that needs data runs on data of the mini corpus's layout."""

from __future__ import annotations

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
