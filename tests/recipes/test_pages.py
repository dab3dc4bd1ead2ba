"""Tests that run the commands of the documentation's pages in order, in an empty folder."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest

from omnikit.convert import mini_omni
from omnikit.train.plot_curves import read_log
from tests.pages import blocks, commands, write_files
from tests.unit.test_convert import write_published

FEWER = ["--steps_per_epoch", "2", "--epochs.limit", "2"]
"""Command-line flags that shorten the training shown in docs/train.md."""


@pytest.fixture
def typed(run_here, tmp_path, monkeypatch):
    """Function that runs a command line, such as `omnikit ask question.wav`, in a new folder and returns its output."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def call(line: str) -> str:
        script, *words = shlex.split(line)
        if script == "python":
            script, *words = tmp_path / words[0], *words[1:], *FEWER
        monkeypatch.chdir(tmp_path)
        status, out, err = run_here(script, *words)
        assert status == 0, f"{line}: {out} {err}"
        return out

    return call


def test_first_steps(typed, tmp_path, monkeypatch):
    lines = [line for line in commands("first_steps.md") if not line.startswith("pip ")]
    assert len(lines) >= 6
    printed = {line: typed(line) for line in lines}
    assert all(printed[line].strip() for line in lines if " speak " not in line)
    assert (tmp_path / "answer.wav").stat().st_size > 1000
    monkeypatch.chdir(tmp_path)
    for block in blocks("first_steps.md"):
        if block.language == "python":
            exec(compile(block.text, "first_steps.md", "exec"), {})


def test_conversations(tmp_path, monkeypatch):
    """Check the conversation in a pipe and the one in Python; the question is one of the shipped system's."""
    [line] = commands("conversations.md")
    line = line.replace("omnikit talk", f"{shlex.quote(sys.executable)} -m omnikit.cli talk")  # also if not installed
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert (tmp_path / "answers" / "turn-02.wav").is_file()
    shutil.copy(Path(__file__).parents[2] / "egs/mini/questions/sum.wav", tmp_path / "question.wav")
    monkeypatch.chdir(tmp_path)
    names = {"wake": Event().set}
    for code in [block.text for block in blocks("conversations.md") if block.language == "python"]:
        exec(compile(code, "conversations.md", "exec"), names)


def test_the_shipped_system_is_trained_on_own_data(typed, tmp_path):
    assert write_files("train.md", tmp_path) == ["train.csv", "written.csv"]
    *others, transcribe, ask = commands("train.md")
    assert len(others) == 3
    for line in others:
        typed(line)
    assert typed(transcribe).strip().startswith("is the ")
    assert typed(ask).strip()
    log = read_log(tmp_path / "results" / "finetuned" / "train_log.jsonl")
    assert [line["epoch"] for line in log] == [0, 1, 2] and all("wrong T1T2" in line["valid"] for line in log)
    assert log[-1]["valid"]["loss"] < log[0]["valid"]["loss"]
    assert os.path.isfile(tmp_path / "results" / "finetuned" / "curves.png")


def test_a_converted_checkpoint_is_trained_on_own_data(typed, tmp_path):
    """The commands of docs/train.md train a published checkpoint of toy size, and its loss falls."""
    folder = write_published(tmp_path)
    mini_omni.convert(folder / "mini_omni", tmp_path / "omni", codec=str(folder / "snac"))
    write_files("train.md", tmp_path)
    speak, recipe, train, _, ask = commands("train.md")
    typed(speak)
    typed(f"{recipe} --checkpoint omni")
    typed(f"{train} --warmup_steps 1 --peak_lr 1e-2")
    log = read_log(tmp_path / "results" / "finetuned" / "train_log.jsonl")
    assert log[-1]["valid"]["loss"] < log[0]["valid"]["loss"]
    assert typed(ask).strip()


def test_swapping_parts(typed):
    for line in commands("swap.md"):
        assert typed(line).strip()
    for block in blocks("swap.md"):
        if block.language == "python":
            exec(compile(block.text, "swap.md", "exec"), {})
