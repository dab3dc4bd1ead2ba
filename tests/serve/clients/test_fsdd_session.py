"""Test the session of recipes/FSDD: a speaker says strings of digits, which the server transcribes and answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from omnikit.prepare.espeak import synthesize
from tests.pages import ROOT

FOLDER = ROOT / "recipes" / "FSDD"
CLOSED = "http://127.0.0.1:9/v1"
DIGITS = {"0": "zero", "3": "three", "5": "five"}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Folder of recordings of some digits by the speaker `ann`, named like those of FSDD."""
    folder = tmp_path_factory.mktemp("fsdd")
    for digit, word in DIGITS.items():
        for index in range(2):
            wav, rate = synthesize(word, "en-us+f3", speed=140 + 20 * index, sample_rate=8000)
            soundfile.write(folder / f"{digit}_ann_{index}.wav", wav, rate)
    return folder


def session(folder: Path, *flags: object) -> subprocess.CompletedProcess:
    words = ["session.py", "--data_folder", folder, "--model", "mini", *flags]
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=120)


def test_what_a_speaker_says_is_transcribed_and_answered(server, omni, recordings, tmp_path):
    strings = ["5", "305"]
    done = session(
        recordings, "--speaker", "ann", "--strings", *strings, "--output_folder", tmp_path, "--url", server.url,
        "--token", server.token,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = [dict(line.split("  ", 1) for line in turn.splitlines()) for turn in done.stdout.strip().split("\n\n")]
    assert [turn["ann says"] for turn in shown] == ["five", "three zero five"]
    for number, turn in enumerate(shown, 1):
        assert turn["understood"].strip() == omni.transcribe(tmp_path / f"said{number}.wav")
        assert turn["answer"].strip() and soundfile.info(tmp_path / f"answer{number}.wav").duration > 0.3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--speaker", "bob"], "--speaker bob: not in "),
        (["--speaker", "ann", "--strings", "31"], "--strings 31: no usable recording of 1 by ann in "),
        (["--speaker", "ann", "--strings", "3a"], "--strings 3a: not a string of digits"),
        (["--speaker", "ann", "--url", CLOSED, "--strings", "3"], f"--url {CLOSED}: cannot connect"),
    ],
)
def test_it_refuses_bad_values_in_one_line(recordings, tmp_path, flags, message):
    done = session(recordings, "--output_folder", tmp_path, *flags)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}"), done.stderr
