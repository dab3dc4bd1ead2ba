"""Test that omnikit uses no deprecated features of torch and transformers, in the pinned and in the newest versions."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import tempfile
import traceback
import venv
import warnings
from importlib import metadata
from pathlib import Path

import pytest

from tests.deprecations.listen import ROOT, SITE, deprecations, judged

WATCHED = ("torch", "torchaudio", "transformers", "tokenizers", "huggingface_hub", "safetensors", "peft", "speechbrain")


def run_paths(python: Path | str, *names: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'unit'}"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(python), "-m", "tests.deprecations.main_paths", *names]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)


@pytest.mark.parametrize(
    "names",
    [
        ("shipped", "encoders", "codecs", "conversion", "training"),
        pytest.param(("backbones",), marks=pytest.mark.long),
        pytest.param((), marks=pytest.mark.long),
    ],
    ids=lambda names: "-".join(names) or "all",
)
def test_main_paths_call_nothing_deprecated(names):
    ran = run_paths(sys.executable, *names)
    assert ran.returncode == 0, ran.stderr[-3000:]


def requirements() -> list[str]:
    """Return the names of the packages that omnikit and its tests require, without pinned versions."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = config["options"]["install_requires"] + config["options.extras_require"]["dev"]
    return [line for line in listed.splitlines() if line]


def pip(python: Path | str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(python), "-m", "pip", *arguments], capture_output=True, text=True, timeout=3000)


def newest(package: str) -> str:
    """Return the newest version of a package on the package index; skip the test if the index cannot be reached."""
    asked = pip(sys.executable, "index", "versions", package)
    if asked.returncode:
        pytest.skip(f"no index that has {package}: {asked.stderr.strip().splitlines()[-1]}")
    return re.match(r"\S+ \((\S+)\)", asked.stdout)[1]


@pytest.mark.long
def test_main_paths_call_nothing_that_the_newest_releases_deprecate():
    installed = {name: metadata.version(name).partition("+")[0] for name in ("torch", "transformers")}
    if installed == {name: newest(name) for name in installed}:
        pytest.skip(f"the index has nothing newer than what is installed: {installed}")
    with tempfile.TemporaryDirectory() as scratch:  # several GB: pytest's own folders would be kept
        venv.create(scratch, with_pip=True)
        python = Path(scratch) / "bin" / "python"
        done = pip(python, "install", "--no-cache-dir", "--upgrade", *requirements())
        assert done.returncode == 0, done.stderr[-3000:]
        versions = pip(python, "freeze").stdout.split()
        print("newest releases:", *(line for line in versions if line.partition("==")[0].replace("-", "_") in WATCHED))
        ran = run_paths(python)
        assert ran.returncode == 0, ran.stderr[-3000:]


def called_from(*files: str) -> traceback.StackSummary:
    return traceback.StackSummary.from_list([(file, 1, "f", "") for file in files])


def test_the_one_who_called_it_is_found():
    own, std = str(ROOT / "omnikit" / "x.py"), warnings.__file__
    torch, speechbrain = (str(SITE[0] / name) for name in ("torch/x.py", "speechbrain.py"))
    assert judged("old", called_from(own, torch, torch, std)).caller == ""
    assert judged("old", called_from(own, speechbrain, torch, std)).caller == "speechbrain"
    assert judged("old", called_from(own, torch, speechbrain, std)) is None  # speechbrain's own, not torch's
    assert judged("old", called_from(std)) is None


def test_warnings_and_log_lines_are_heard_each_time():
    import torch
    from transformers.utils import logging

    for _ in range(2):
        with deprecations() as found:
            torch.jit.script(torch.nn.ReLU())
            logging.get_logger("transformers.models").warning("said here, so it is not transformers' own: deprecated")
        assert found and all(each.caller == "" and "torch.jit.script" in each.message for each in found)
