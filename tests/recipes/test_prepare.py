"""The LibriSpeech manifests: what is read, what is left out, when they are made again."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "LibriSpeech"
sys.path.append(str(RECIPE))

from prepare import prepare_librispeech  # noqa: E402

TEXTS = {"19-198-0000": "NORTHANGER ABBEY", "19-198-0001": "THIS LITTLE WORK", "26-495-0000": "IT WAS SO"}


def write(folder: Path, name: str, seconds: float = 1.5) -> Path:
    speaker, chapter, _ = name.split("-")
    path = folder / speaker / chapter / f"{name}.flac"
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).standard_normal(int(seconds * 16000)) * 0.1
    soundfile.write(path, noise, 16000)
    return path


def write_transcripts(folder: Path, texts: dict[str, str]) -> None:
    for chapter in {name.rpartition("-")[0] for name in texts}:
        lines = [f"{name} {text}\n" for name, text in texts.items() if name.rpartition("-")[0] == chapter]
        place = folder / chapter.replace("-", "/")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{chapter}.trans.txt").write_text("".join(lines))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    split = tmp_path / "LibriSpeech" / "dev-clean"
    for i, name in enumerate(TEXTS):
        write(split, name, 1.0 + i)
    write_transcripts(split, TEXTS)
    return tmp_path


def rows(folder: Path, split: str = "dev-clean") -> list[dict]:
    with (folder / f"{split}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("inside", ["LibriSpeech", "."])
def test_rows(corpus: Path, tmp_path: Path, inside: str):
    summary = prepare_librispeech(corpus / inside, tmp_path / "out", ["dev-clean"])["dev-clean"]
    found = {row["ID"]: row for row in rows(tmp_path / "out")}
    assert {name: row["wrd"] for name, row in found.items()} == TEXTS
    assert [float(found[name]["duration"]) for name in TEXTS] == [1.0, 2.0, 3.0]
    assert {row["spk_id"] for row in found.values()} == {"19", "26"}
    assert all(Path(row["wav"]).is_file() for row in found.values())
    assert list(rows(tmp_path / "out")[0]) == ["ID", "duration", "wav", "spk_id", "wrd"]
    assert (summary.rows, summary.speakers, summary.skipped) == (3, 2, {})
    assert summary.hours == pytest.approx(6 / 3600)


def damage(split: Path) -> dict[str, int]:
    """One more recording for each thing that can be wrong with one."""
    texts = TEXTS | {f"19-198-{i:04d}": "A TEXT" for i in range(10, 14)} | {"19-198-0014": ""}
    cut = write(split, "19-198-0010")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    write(split, "19-198-0011").write_bytes(b"not audio at all")
    write(split, "19-198-0012", 0.0)
    write(split, "19-198-0014")  # 0013 has a text and no recording
    write(split, "26-495-0009")  # a recording that no transcript names
    write_transcripts(split, texts)
    return {"unreadable": 3, "missing": 1, "without a text": 2}


@pytest.mark.parametrize("decode_all", [False, True])
def test_damaged_recordings_are_left_out_and_counted(corpus: Path, tmp_path: Path, decode_all: bool):
    expected = damage(corpus / "LibriSpeech" / "dev-clean")
    summary = prepare_librispeech(corpus, tmp_path / "out", ["dev-clean"], decode_all)["dev-clean"]
    assert {row["ID"] for row in rows(tmp_path / "out")} == set(TEXTS)
    assert summary.skipped == expected
    assert "3 unreadable (such as 19-198-001" in str(summary)


def test_made_again_only_when_something_changed(corpus: Path, tmp_path: Path):
    def made() -> int:
        prepare_librispeech(corpus, tmp_path / "out", ["dev-clean"])
        return (tmp_path / "out" / "dev-clean.csv").stat().st_mtime_ns

    first = made()
    assert made() == first
    split = corpus / "LibriSpeech" / "dev-clean"
    write(split, "26-495-0001")
    write_transcripts(split, TEXTS | {"26-495-0001": "ONE MORE"})
    second = made()
    assert second > first and len(rows(tmp_path / "out")) == 4
    aside = split / "aside.flac"
    os.replace(write(split, "1-1-0000", 5.0), aside)
    os.replace(aside, split / "26" / "495" / "26-495-0001.flac")
    assert made() > second
    assert max(float(row["duration"]) for row in rows(tmp_path / "out")) == 5.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--splits", "dev-other"], "--splits dev-other: not in"),
        (["--data_folder", "/nowhere", "--splits", "dev-clean"], "--data_folder /nowhere: no such folder"),
    ],
)
def test_the_script_says_what_is_wrong_in_one_line(corpus: Path, tmp_path: Path, arguments: list[str], message: str):
    command = [sys.executable, str(RECIPE / "prepare.py"), "--data_folder", str(corpus), "--save_folder", str(tmp_path)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr


def test_a_split_with_nothing_usable_is_refused(corpus: Path, tmp_path: Path):
    write_transcripts(corpus / "LibriSpeech" / "dev-other", {"1-1-0000": "NO RECORDING"})
    with pytest.raises(ValueError, match=r"no usable recording.*missing"):
        prepare_librispeech(corpus, tmp_path / "out", ["dev-other"])
