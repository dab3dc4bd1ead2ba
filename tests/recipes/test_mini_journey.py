"""Tests of the shell scripts in egs/mini, with a stub in place of Python that only records its command lines."""

import os
import subprocess
from pathlib import Path

import pytest

MINI = Path(__file__).parents[2] / "egs" / "mini"
COMPUTING = {"train.py", "train_encoder.py", "train_codec.py", "evaluate.py", "evaluate_dialogs.py", "report.py"}


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


FEATURES = {"asr": "manifests/train-clean.csv", "qa": "qa/train.parquet", "dialogs": "qa/dialogs_train.parquet"}


@pytest.mark.parametrize("ears", ["mini", "whisper_base"])
def test_speech_is_encoded_once_for_all_stages(journey, tmp_path, ears):
    data, results, weights = tmp_path / "data", tmp_path / "results", tmp_path / "weights.pt"
    weights.touch()
    more = ["--whisper_weights", str(weights)] if ears == "whisper_base" else []
    done, calls = journey("run.sh", "--ears", ears, *more, "--data", str(data), "--results", str(results), usable=True)
    assert done.returncode == 0, done.stderr
    encoding = [call for call in calls if call.startswith("-m omnikit.cli tokenize")]
    stages = [call for call in calls if call.startswith("train.py")]
    assert len(encoding) == len(FEATURES) and len(stages) == 3
    assert calls.index(encoding[-1]) < calls.index(stages[0])
    for (name, manifest), call in zip(FEATURES.items(), encoding, strict=True):
        assert f" {data / manifest} --save_folder {results / 'features' / name} --drop a1 --encoder {ears} " in call
        assert ("--copies 2 --augment rooms" in call) == (ears == "whisper_base")
        assert all(f"--sources.{name}.manifest {results / 'features' / name}" in stage for stage in stages)
    assert all(("hparams/whisper_base.yaml" in stage) == (ears == "whisper_base") for stage in stages)
    if ears == "whisper_base":
        assert (results / "weights" / "base.pt").resolve() == weights
        assert not any("pretrained/encoder" in call for call in calls)


def test_from_scratch_whisper_is_not_trained_and_the_backbone_is(journey, tmp_path):
    folders = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    done, calls = journey("run.sh", "--from-scratch", "--ears", "whisper_base", *folders, usable=True)
    assert done.returncode == 0, done.stderr
    assert "train_encoder.py" not in {script_of(call) for call in calls}
    backbone, *stages = [call for call in calls if call.startswith("train.py")]
    assert "hparams/backbone.yaml" in backbone and "whisper_base" not in backbone and len(stages) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--ears whisper", "--ears whisper (choices: mini, whisper_base)"),
        ("--whisper_weights base.pt", "--whisper_weights base.pt: needs --ears whisper_base"),
        ("--ears whisper_base --whisper_weights base.pt", "--whisper_weights base.pt: no such file"),
        ("--ears", "--ears needs a value"),
        ("--copies two", "--copies two (choices: 0, 1, 2 ..)"),
    ],
)
def test_run_refuses_bad_values_in_one_line(journey, words, message):
    done, calls = journey("run.sh", *words.split(), usable=True)
    assert (done.returncode, done.stderr, calls) == (2, f"run.sh: {message}\n", [])
