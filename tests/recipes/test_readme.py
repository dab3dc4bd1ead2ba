"""Tests that run the commands and the code of README.md, except `make demo` and `make test`."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import soundfile

from omnikit.prepare.corpus import prepare
from tests.recipes.conftest import MINI_SYSTEM, ROOT
from tests.recipes.trees import libritts, load_corpus, mls, vctk

README = (ROOT / "README.md").read_text(encoding="utf-8")
INDENTED = re.findall(r"^    (.+)$", README, flags=re.MULTILINE)
OMNIKIT = [line for line in INDENTED if line.startswith("omnikit ")]
TRAIN = [line for line in INDENTED if line.startswith("python train.py ")]
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
QUICK = [
    "--steps_per_epoch", "2", "--epochs.limit", "1", "--max_batch_length", "300", "--model.tts_blocks", "1",
    "--device", "cpu", "--effective_batch_size", "null",
]  # fmt: skip
TINY = ["--size", "tiny", "--pretrained", "false"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folder with the manifests of the corpora that training stage 1 uses."""
    folder = tmp_path_factory.mktemp("published")
    for split in ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean"):
        libritts(folder / "upstream", split=split)
    vctk(folder / "upstream")
    mls(folder / "upstream", name="train", languages=["english"])
    for name in ("LibriTTS", "VCTK", "MLS"):
        assert list(prepare(load_corpus(name), folder / "upstream", folder / name))
    return folder


@pytest.fixture
def workplace(tmp_path):
    """Folder with the sound files and spoken questions that the README's commands refer to."""
    shutil.copytree(ROOT / "egs" / "mini" / "questions", tmp_path / "egs" / "mini" / "questions")
    question = next((ROOT / "egs" / "mini" / "questions").glob("*.wav"))
    for name in ("question.wav", "talk.wav"):
        shutil.copyfile(question, tmp_path / name)
    return tmp_path


def run(command: list[str], folder) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return done


def test_the_readme_has_its_commands():
    assert len(OMNIKIT) >= 5
    assert len(TRAIN) >= 2
    assert PYTHON


def ways(lines: list[str]) -> list:
    """Return test parameters that run the first command line as a process and the others in this process.

    Long tests run all command lines as processes.
    """
    first, *others = lines
    late = [pytest.param(line, True, marks=pytest.mark.long) for line in others]
    return [(first, True), *((line, False) for line in others), *late]


@pytest.mark.parametrize(("line", "alone"), ways(OMNIKIT))
def test_omnikit_commands(line, alone, workplace, run_here, monkeypatch):
    words = shlex.split(line)[1:]
    if alone:
        done = run([sys.executable, "-m", "omnikit.cli", *words], workplace)
        written = done.stdout + done.stderr
    else:
        monkeypatch.chdir(workplace)
        status, out, err = run_here("omnikit", *words)
        written = out + err
        assert status == 0, written
    assert written.strip()
    if "-o" in words:
        wav, _ = soundfile.read(workplace / words[words.index("-o") + 1])
        assert abs(wav).max() > 0.05


@pytest.mark.parametrize("code", PYTHON)
def test_python_examples(code, workplace):
    run([sys.executable, "-c", code], workplace)


@pytest.mark.parametrize(("line", "alone"), ways(TRAIN))
def test_training_commands(line, alone, data, published, run_here, tmp_path):
    """Run a training command of the README, with the mini system or with untrained parts of tiny size."""
    folder, more = (data, []) if MINI_SYSTEM.name in line else (published, TINY)
    words = [str(folder) if word == "DIR" else word for word in shlex.split(line)[1:]] + more
    words += ["--output_folder", str(tmp_path / "out"), *QUICK]
    recipe = ROOT / "recipes" / "VoiceAssistant" / "QA"
    if alone:
        run([sys.executable, *words], recipe)
    else:
        status, out, err = run_here(recipe / words[0], *words[1:])
        assert status == 0, out + err
