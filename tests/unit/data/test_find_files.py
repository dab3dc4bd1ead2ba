"""Tests of the search for recordings in folders with hidden files of macOS, other files, links and other formats."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnikit.data.find_files import is_recording, visible, walk, with_other_ending
from omnikit.offline.batch_inference import other_files, read_entries
from omnikit.tasks import TASKS

DOUBLE = b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + b"\xff\xb0" * 60
"""First bytes of an AppleDouble file, which macOS writes beside other files."""


def encoded(kind: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).uniform(-0.3, 0.3, 4000), 16000, format=kind, subtype=subtype)
    return buffer.getvalue()


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Return a folder with hidden files, recordings with and without an extension, unreadable formats, and other files.
    """
    hidden = {"._a.wav": DOUBLE, ".DS_Store": b"x", "__MACOSX/a.wav": DOUBLE, ".cache/b.wav": encoded("WAV")}
    sounds = {"a.wav": encoded("WAV"), "deep/B.FLAC": encoded("FLAC"), "c.w64": encoded("W64"), "d": encoded("WAV")}
    sounds |= {"e.bin": encoded("MP3"), "f.m4a": b"\0\0\0\x20ftypM4A ", "g.webm": b"\x1aE\xdf\xa3", "h.wav": b"words"}
    others = {"notes.txt": b"words", "deep/h": b"RIFF\0\0\0\0AVI ", "i.aac.json": b"\xff\xf1P\x80"}
    put(tmp_path / "in", hidden | sounds | others)
    return tmp_path / "in"


def test_a_folder_gives_recordings_and_counts_other_files(mixed: Path):
    rows = read_entries(mixed, TASKS["A1T1"])
    assert [row.id for row in rows] == ["a", "c", "d", "deep/B", "e", "f", "g", "h"]
    assert [row.a1.check().problem for row in rows] == [None] * 5 + ["unreadable"] * 3
    found = other_files(mixed)
    assert found.reasons == {"other file": 3} and found.examples == {"other file": "i.aac.json"}


def test_a_folder_without_recordings_names_what_it_has(tmp_path: Path):
    put(tmp_path, {"notes.txt": b"words", "._a.wav": DOUBLE})
    with pytest.raises(ValueError, match=r"holds no recording \(\.wav, .*it has 1 other file \(such as notes.txt\)"):
        read_entries(tmp_path, TASKS["A1T1"])


def test_links_are_followed_once(tmp_path: Path):
    put(tmp_path, {"in/a.wav": b"", "elsewhere/b.wav": b""})
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    assert [path.name for path in walk(tmp_path / "in")] == ["a.wav", "b.wav"]


def test_patterns_find_nothing_hidden(mixed: Path):
    assert {path.name for path in visible(mixed, "**/*.wav")} == {"a.wav", "h.wav"}
    assert {path.name for path in visible(mixed / ".cache", "*")} == {"b.wav"}  # only paths below it count


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refusing(place: str) -> object:  # permissions do not apply to root, who may run the tests
        if place.endswith("locked"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match=r"locked: the folder cannot be read \(Permission denied\)"):
        list(walk(tmp_path))


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3"])
def test_recordings_are_known_by_their_first_bytes(kind: str, tmp_path: Path):
    put(tmp_path, {"a": encoded(kind), "b": b"\0" + encoded(kind)})
    assert is_recording(tmp_path / "a") and not is_recording(tmp_path / "b")


def test_neither_pipes_nor_overlong_names_stop_a_look_at_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(tmp_path / "pipe")
    opened = []
    monkeypatch.setattr(Path, "open", lambda path, mode: opened.append(path) or io.BytesIO(b"RIFF\0\0\0\0WAVE"))
    assert not is_recording(tmp_path / "pipe") and not opened  # opening it would block
    assert with_other_ending(tmp_path / ("a" * 255)) is None
