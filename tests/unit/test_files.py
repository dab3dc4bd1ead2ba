"""Test writing files: each is complete or absent, and an error of the disk is reported in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from full_disk import full_disk

from omnikit.audio.io import check_target, load_audio, save_audio
from omnikit.errors import Unwritable
from omnikit.files import (
    FORMER,
    check_unicode,
    present_folder,
    read_text,
    whole_folder,
    whole_text,
    write_bytes,
    write_text,
)
from omnikit.weights import save_weights


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_whole_and_its_folder_is_made(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "ümlaut\n")
    assert read_text(tmp_path / "a" / "b.txt") == "ümlaut\n"
    with whole_text(tmp_path / "c.csv", newline="") as file:
        file.write("x\r\n")
    assert (tmp_path / "c.csv").read_bytes() == b"x\r\n"
    assert names(tmp_path) == ["a", "c.csv"] and names(tmp_path / "a") == ["b.txt"]


@pytest.mark.parametrize("size", [0, 1000])
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_full_disk_leaves_what_was_there(tmp_path, size, before):
    file = tmp_path / "a.bin"
    if before is not None:
        file.write_bytes(before)
    for write in (
        lambda: write_bytes(file, b"x" * 5000),
        lambda: write_text(file, "x" * 5000),
        lambda: save_weights(torch.nn.Linear(30, 30), tmp_path / "a.safetensors"),
        lambda: save_audio(tmp_path / "a.wav", torch.zeros(5000), 16000),
        lambda: save_audio(tmp_path / "a.flac", torch.rand(5000), 16000),
    ):
        with full_disk(size), pytest.raises(Unwritable, match=r"a\.\w+: cannot be written \(File too large\); start"):
            write()
        assert names(tmp_path) == ([] if before is None else ["a.bin"])
    assert before is None or file.read_bytes() == before


def test_an_error_of_the_program_passes_and_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), whole_text(tmp_path / "a.txt") as file:
        file.write("half")
        raise KeyError("a bug")
    assert names(tmp_path) == []


def test_a_link_is_kept_and_its_file_replaced(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    link = tmp_path / "a.wav"
    link.symlink_to("/dev/full")
    with pytest.raises(Unwritable, match=r"a\.wav: cannot be written \(No space left on device\)"):
        save_audio(link, torch.zeros(100), 16000)
    assert Path("/dev/full").is_char_device() and names(tmp_path) == ["a.wav"]


@pytest.mark.parametrize("name", ["file.txt/a.wav", "folder.wav", "n" * 300 + ".wav", "none/a.wav"])
def test_what_the_system_refuses_is_told_before_the_work(tmp_path, name):
    (tmp_path / "file.txt").touch()
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(ValueError, match=r"\.wav: ") as refused:
        check_target(tmp_path / name)
    assert str(tmp_path / name) in str(refused.value)
    assert names(tmp_path) == ["file.txt", "folder.wav"]


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
    file = tmp_path / ("ä" * 125 + ".wav")
    save_audio(file, torch.zeros(100), 16000)
    assert len(load_audio(file, 16000)) == 100 and len(names(tmp_path)) == 1


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=r"a\.yaml: not a text in UTF-8 \(byte 0xff at position 3\)"):
        read_text(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match=r"text 'a\\udcff': not UTF-8"):
        check_unicode("a\udcff")


def test_files_and_folders_are_put_in_their_place_by_one_module():
    """Only `omnikit/files.py` renames files into place, with two exceptions.

    They are SpeechBrain's checkpoints, whose names say whether they are complete, and files that OpenVINO writes in
    pairs.
    """
    root = Path(__file__).parents[2]
    allowed = {"omnikit/files.py", "omnikit/train/checkpointer.py", "omnikit/engines/openvino.py"}
    renames = re.compile(r"os\.(replace|rename)\(|shutil\.move\(|\.rename\(")
    paths = (path for folder in ("omnikit", "recipes", "egs", "benchmarks") for path in (root / folder).rglob("*.py"))
    found = {str(path.relative_to(root)) for path in paths if renames.search(path.read_text(encoding="utf-8"))}
    assert found == allowed


def test_a_folder_is_exchanged_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "folder"
    with whole_folder(folder) as aside:
        (aside / "a").write_text("first")
    with pytest.raises(KeyError), whole_folder(folder) as aside:
        (aside / "a").write_text("second")
        raise KeyError
    assert (folder / "a").read_text() == "first" and list(tmp_path.iterdir()) == [folder]
    folder.rename(tmp_path / f"folder{FORMER}")  # as a kill leaves it
    assert (present_folder(folder) / "a").read_text() == "first"
    with whole_folder(folder) as aside:
        (aside / "b").write_text("third")
    assert [path.name for path in present_folder(folder).iterdir()] == ["b"] and list(tmp_path.iterdir()) == [folder]
