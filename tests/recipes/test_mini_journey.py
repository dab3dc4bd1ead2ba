"""Tests of the shell scripts in egs/mini, with a stub in place of Python that only records its command lines."""

import os
import subprocess
from pathlib import Path

import pytest

MINI = Path(__file__).parents[2] / "egs" / "mini"
COMPUTING = {"train.py", "train_encoder.py", "train_codec.py", "evaluate.py", "report.py"}


@pytest.fixture
def journey(tmp_path):
    """Function that runs a shell script and returns the finished process and the command lines of its Python stub.

    `usable` says whether the stub's check of the device succeeds.
    """
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$*" >> "$CALLS"\nif [ "$1" = -c ]; then $PROBE; fi\n')
    python.chmod(0o755)

    def call(script: str, *arguments: str, usable: bool) -> tuple[subprocess.CompletedProcess, list[str]]:
        calls = tmp_path / "calls"
        probe = "true" if usable else "eval echo torch has no such device; exit 1"
        environment = {**os.environ, "PYTHON": str(python), "CALLS": str(calls), "PROBE": probe}
        command = ["bash", str(MINI / script), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return done, calls.read_text().splitlines() if calls.exists() else []

    return call


def script_of(call: str) -> str:
    return Path(call.split()[0]).name


def test_every_step_that_computes_is_given_the_device(journey, tmp_path):
    folders = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    done, calls = journey("run.sh", "--from-scratch", "--device", "cuda", *folders, usable=True)
    assert done.returncode == 0, done.stderr
    assert {script_of(call) for call in calls} >= COMPUTING
    without = [call for call in calls if script_of(call) in COMPUTING and "--device cuda" not in call]
    assert not without
    steps = [call for call in calls if call.startswith("train.py")]
    assert len(steps) == 4 and all("--precision fp32" in step for step in steps)


def test_the_processor_is_the_default(journey, tmp_path):
    folders = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    done, calls = journey("run.sh", *folders, usable=False)
    assert done.returncode == 0, done.stderr
    assert all("--device cpu" in call for call in calls if script_of(call) in COMPUTING)


@pytest.mark.parametrize("script", ["run.sh", "demo.sh"])
def test_a_device_that_cannot_be_used_ends_it_before_the_first_step(journey, script):
    done, calls = journey(script, "--device", "gpu", usable=False)
    assert done.returncode == 2
    message = "cannot be used (torch has no such device; choices: cpu, and cuda where there is a GPU)"
    assert done.stderr == f"run.sh: --device gpu: {message}\n"
    assert [call.split()[0] for call in calls] == ["-c"]


def test_demo_refuses_what_it_does_not_know(journey):
    for arguments, message in ((["--cuda"], "unknown option --cuda"), (["--device"], "--device needs a value")):
        done, calls = journey("demo.sh", *arguments, usable=True)
        assert done.returncode == 2 and done.stderr.startswith(f"demo.sh: {message}") and not calls
