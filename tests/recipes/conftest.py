"""An untrained system of the mini parts as a checkpoint folder, and recipes run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from omnikit import checkpoint
from omnikit.hparams import build_parts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = build_parts({"codec": "snac_mini"})["model"]
    folder = tmp_path_factory.mktemp("system") / "checkpoint"
    checkpoint.save(model.eval(), folder)
    return folder


@pytest.fixture
def run():
    """`run("recipes/LibriSpeech/ASR/evaluate.py", "hparams/eval.yaml", ..)` in the recipe's own folder."""

    def call(script: str, *arguments: str) -> subprocess.CompletedProcess:
        path = ROOT / script
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, path.name, *map(str, arguments)]
        return subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True, timeout=300)

    return call
