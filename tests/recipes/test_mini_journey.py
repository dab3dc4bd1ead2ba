"""Tests of the shell scripts in egs/mini, with a stub in place of Python that only records its command lines."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

MINI = Path(__file__).parents[2] / "egs" / "mini"
COMPUTING = {"train.py", "train_encoder.py", "train_codec.py", "evaluate.py", "evaluate_dialogs.py", "report.py"}


@pytest.fixture
def journey(tmp_path):
    """Function that runs a shell script and returns the finished process and the command lines of its Python stub.

    `usable` says whether the stub's check of the device succeeds; command lines with the word FAIL fail, those with
    the word HANG never end.
    """
    python = tmp_path / "python"
    python.write_text("""#!/bin/sh
echo "$*" >> "$CALLS"
if [ "$1" = -c ]; then $PROBE; fi
case " $* " in *" ${FAIL:-nothing} "*) exit 3;; *" ${HANG:-nothing} "*) exec sleep 1000;; esac
case "$*" in *" tokenize "*) echo "$OMP_NUM_THREADS" >> "$CALLS.threads";; esac
""")
    python.chmod(0o755)

    def call(
        script: str, *arguments: str, usable: bool, interrupt: signal.Signals | None = None
    ) -> tuple[subprocess.CompletedProcess, list[str]]:
        calls = tmp_path / "calls"
        probe = "true" if usable else "eval echo torch has no such device; exit 1"
        environment = {**os.environ, "PYTHON": str(python), "CALLS": str(calls), "PROBE": probe}
        command = ["bash", str(MINI / script), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes) as process:
            if interrupt is not None:
                wait_until(lambda: calls.exists() and calls.read_text().count(" tokenize ") == 2)
                os.killpg(process.pid, interrupt)
            out, error = process.communicate(timeout=60)  # until every process that it has started has ended, too
        done = subprocess.CompletedProcess(command, process.returncode, out, error)
        return done, calls.read_text().splitlines() if calls.exists() else []

    return call


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
    assert len(steps) == 5 and all("--precision fp32" in step for step in steps)


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


FEATURES = {
    "asr": "manifests/train-clean.csv",
    "qa": "qa/train.parquet",
    "dialogs": "qa/dialogs_train.parquet",
    "dialogs_more": "qa/dialogs_more.parquet",
}


def touch_corpus(data: Path) -> None:
    """Create the files by which a script knows that a data folder has a corpus, empty."""
    for file in ("corpus/READY", "qa/dialogs_more.parquet"):
        (data / file).parent.mkdir(parents=True)
        (data / file).touch()


@pytest.mark.parametrize("ears", ["mini", "whisper_base"])
def test_speech_is_encoded_once_for_all_stages(journey, tmp_path, monkeypatch, ears):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # which nproc obeys
    data, results, weights = tmp_path / "data", tmp_path / "results", tmp_path / "weights.pt"
    weights.touch()
    more = ["--whisper_weights", str(weights)] if ears == "whisper_base" else []
    done, calls = journey("run.sh", "--ears", ears, *more, "--data", str(data), "--results", str(results), usable=True)
    assert done.returncode == 0, done.stderr
    encoding = [call for call in calls if call.startswith("-m omnikit.cli tokenize")]
    stages = [call for call in calls if call.startswith("train.py")]
    assert len(encoding) == len(FEATURES) and len(stages) == 4
    assert calls.index(encoding[-1]) < calls.index(stages[0])
    for name, manifest in FEATURES.items():
        call = next(call for call in encoding if f"/features/{name} " in call)
        assert f" {data / manifest} --save_folder {results / 'features' / name} --drop a1 --encoder {ears} " in call
        count = {"asr": "2", "qa": "1"}.get(name) if ears == "whisper_base" else None
        assert re.findall(r"--copies (.+?) --augment rooms", call) == [count] * (count is not None)
        assert all(f"--sources.{name}.manifest {results / 'features' / name}" in stage for stage in stages)
    assert all(("hparams/whisper_base.yaml" in stage) == (ears == "whisper_base") for stage in stages)
    threads = (tmp_path / "calls.threads").read_text().split()
    assert threads == [str(max(1, len(os.sched_getaffinity(0)) // 2))] * len(FEATURES)  # two processes at a time
    if ears == "whisper_base":
        assert (results / "weights" / "base.pt").resolve() == weights
        assert not any("pretrained/encoder" in call for call in calls)


def test_a_trained_system_goes_on_learning(journey, tmp_path):
    (tmp_path / "system").mkdir()
    results = tmp_path / "results"
    folders = ["--data", str(tmp_path / "data"), "--results", str(results)]
    for given, read in (("mini", "mini"), (f"{results}/../system", str(tmp_path / "system"))):
        (tmp_path / "calls").unlink(missing_ok=True)
        done, calls = journey("run.sh", "--from", given, *folders, usable=True)
        assert done.returncode == 0, done.stderr
        first, last = (call for call in calls if call.startswith("train.py"))
        assert " hparams/stage3.yaml " in first and "hparams/continue.yaml" in first
        assert f"--output_folder {results / 'continue'} " in first and first.endswith(f"--initial_weights {read}")
        assert "hparams/anneal.yaml" in last and f"--initial_weights {results / 'continue'} " in last


def test_a_trained_system_goes_on_in_a_folder_of_its_own(journey, tmp_path):
    done, calls = journey("run.sh", "--from", "mini", "--from-scratch", usable=True)
    assert done.returncode == 2 and not calls
    assert done.stderr == "run.sh: --from mini: cannot be used with --from-scratch\n"
    folders = ["--data", str(tmp_path / "data"), "--results", str(tmp_path)]
    for there, flags in (("stage3", ["--from", "mini"]), ("continue", ["--stage", "9"])):
        (tmp_path / there).mkdir()
        done, calls = journey("run.sh", *flags, *folders, usable=True)
        assert done.returncode == 2 and not any(call.startswith("train.py") for call in calls)
        assert str(tmp_path) in done.stderr and "choose another" in done.stderr
        (tmp_path / there).rmdir()


@pytest.mark.parametrize("there", ["stage3", "continue", "anneal"])
def test_the_last_stage_that_was_trained_is_evaluated(journey, tmp_path, there):
    (tmp_path / "results" / there).mkdir(parents=True)
    (tmp_path / "results" / there / "model.safetensors").touch()
    touch_corpus(tmp_path / "data")
    folders = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    done, calls = journey("run.sh", *folders, "--stage", "10", usable=True)
    assert done.returncode == 0, done.stderr
    scored = [call for call in calls if " --checkpoint " in call]
    assert len(scored) == 4 and all(f"--checkpoint {tmp_path / 'results' / there} " in call for call in scored)


def test_the_number_of_copies_is_that_of_recordings_to_recognise(journey, tmp_path):
    folders = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results"), "--stage", "6"]
    touch_corpus(tmp_path / "data")
    for copies, expected in (("3", {"asr": "3", "qa": "1"}), ("0", {})):
        (tmp_path / "calls").unlink(missing_ok=True)
        done, calls = journey("run.sh", "--copies", copies, *folders, "--stop_stage", "6", usable=True)
        assert done.returncode == 0, done.stderr
        found = [re.search(r"/features/(\w+) .*--copies (\d+)", call) for call in calls]
        assert dict(each.groups() for each in found if each) == expected and len(calls) == len(FEATURES)


def test_a_corpus_that_lacks_a_split_is_checked(journey, tmp_path):
    (tmp_path / "data" / "corpus").mkdir(parents=True)
    (tmp_path / "data" / "corpus" / "READY").touch()
    folders = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    done, calls = journey("run.sh", *folders, "--stage", "12", "--stop_stage", "12", usable=True)
    assert done.returncode == 0 and [script_of(call) for call in calls] == ["make_corpus.py", "evaluate_dialogs.py"]


@pytest.mark.parametrize("failing", ["asr", "qa", "dialogs"])
def test_an_encoding_that_fails_ends_the_others(journey, tmp_path, monkeypatch, failing):
    results = tmp_path / "results"
    names = {name: str(results / "features" / name) for name in FEATURES}
    monkeypatch.setenv("FAIL", names[failing])
    monkeypatch.setenv("HANG", names["qa" if failing == "asr" else "asr"])
    done, calls = journey("run.sh", "--data", str(tmp_path / "data"), "--results", str(results), usable=True)
    assert done.returncode == 3 and not any(script_of(call) == "train.py" for call in calls)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_all_encodings(journey, tmp_path, monkeypatch, number):
    """The signal goes to the script's process group, as the terminal sends it."""
    monkeypatch.setenv("HANG", "tokenize")
    folders = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    done, calls = journey("run.sh", *folders, usable=True, interrupt=number)
    assert done.returncode == -number and "features" in calls[-1]


def test_from_scratch_whisper_is_not_trained_and_the_backbone_is(journey, tmp_path):
    folders = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    done, calls = journey("run.sh", "--from-scratch", "--ears", "whisper_base", *folders, usable=True)
    assert done.returncode == 0, done.stderr
    assert "train_encoder.py" not in {script_of(call) for call in calls}
    backbone, *stages = [call for call in calls if call.startswith("train.py")]
    assert "hparams/backbone.yaml" in backbone and "whisper_base" not in backbone and len(stages) == 4


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
