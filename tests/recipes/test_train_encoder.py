"""Tests of the mini audio encoder's pre-training as a short run: it resumes, and the encoder part loads its weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from omnikit.encoders.whisper import WhisperEncoder
from tests.unit.train.tiny_training import checkpoints

ROOT = Path(__file__).resolve().parents[2]
EGS = ROOT / "egs" / "mini"
SIZE = {"n_mels": 80, "n_ctx": 1500, "width": 16, "heads": 2, "layers": 1}


def run(script: str, *flags: str) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script, *flags], cwd=EGS, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def train(folder: Path, steps: int) -> None:
    inner = "{" + ", ".join(f"{name}: {value}" for name, value in SIZE.items()) + "}"
    flags = {"data_folder": folder / "data", "output_folder": folder / "out", "export_folder": folder / "export"}
    flags |= {"steps": steps, "warmup_steps": 2, "batch_seconds": 20, "num_buckets": 4, "log_every": 1}
    pairs = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    run("train_encoder.py", "hparams/encoder.yaml", *pairs, f"--encoder={inner}")


@pytest.mark.long
def test_trains_resumes_and_exports(tmp_path: Path):
    run("make_corpus.py", "--data_folder", str(tmp_path / "data"), "--scale", "0.005")
    train(tmp_path, steps=3)
    train(tmp_path, steps=5)
    log = (tmp_path / "out" / "train_log.txt").read_text()
    assert [line.split()[1] for line in log.splitlines() if line.startswith("step ") and "lr" in line] == list("12345")
    first, last = WhisperEncoder(**SIZE, weights=str(tmp_path / "export")), WhisperEncoder(**SIZE)
    last.load_state_dict(torch.load(checkpoints(tmp_path / "out" / "save")[-1] / "encoder.ckpt"))
    first.load_weights()
    for name, value in last.state_dict().items():
        torch.testing.assert_close(first.state_dict()[name], value, rtol=1e-2, atol=1e-3)
    card = (tmp_path / "export" / "README.md").read_text()
    assert "5 steps" in card and "| test-other, random words |" in card
