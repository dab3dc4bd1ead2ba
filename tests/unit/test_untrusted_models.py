"""Test that only one module reads models of other authors, and that it opens their files with care."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
import torch
import whisper

import omnikit
from omnikit.encoders.whisper_weights import read_whisper
from omnikit.size_limits import check_memory, limited
from omnikit.untrusted_files import check_regular, inside, read_bytes, read_json, read_text

ROOT = Path(__file__).parents[2]
PLACE = "omnikit/untrusted_models.py"
RUNNING = {  # functions that can run code in a file -> files that may call them
    "from_pretrained": {PLACE},
    "from_config": {PLACE},
    "torch.load": {PLACE},
    "torch.jit.load": {"omnikit/evaluate/speech_segments.py"},  # the file of an installed package, silero-vad
    "pickle.load": set(),
    "pickle.loads": set(),
    "whisper.load_model": {"omnikit/encoders/whisper_weights.py"},  # reads tensors only, see below
    "torch.hub.load": {"omnikit/evaluate/mos.py"},  # of one repository only, for --mos, whose help says so
}


def calls(source: str) -> set[str]:
    """Return the dotted names of all functions that a file calls, and the last component of each of these names."""
    names = {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
    return names | {name.rpartition(".")[2] for name in names}


def test_models_of_others_are_read_in_one_place():
    for folder in ("omnikit", "recipes", "egs", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            found = calls(path.read_text(encoding="utf-8")) & set(RUNNING)
            wrong = {name for name in found if str(path.relative_to(ROOT)) not in RUNNING[name]}
            assert not wrong, f"{path} calls {wrong}: use omnikit.untrusted_models"


def test_that_place_says_no():
    for node in ast.walk(ast.parse((ROOT / PLACE).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".from_pretrained", ".from_config")):
            assert ("trust_remote_code", "False") in {(word.arg, ast.unparse(word.value)) for word in node.keywords}


def test_the_check_sees_what_it_should():
    assert "from_pretrained" in calls("def f():\n    return g(type(x).from_pretrained(y))")
    assert "torch.load" in calls("with a:\n    b = torch.load(c)")


class Harm:
    def __reduce__(self):
        return (open, ("harm", "w"))


def test_a_file_of_whisper_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"dims": Harm(), "model_state_dict": {}}, "small.pt")
    assert "small.pt" not in whisper.available_models()
    with pytest.raises(ValueError, match=r"small.pt: not a file of openai-whisper"):
        read_whisper("small.pt")
    assert not Path("harm").exists()


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("text")
    (tmp_path / "beside").write_text("secret")
    return tmp_path / "in"


def test_files_inside_a_folder(folder):
    (folder / "link").symlink_to("file")
    (folder / "chain").symlink_to(folder / "link")
    for name in ("file", "link", "chain"):
        assert read_text(inside(folder, name), 99) == "text"
    (folder.parent / "other").symlink_to(folder)
    assert inside(folder.parent / "other", "chain").read_text() == "text"


@pytest.mark.parametrize("name", ["", ".", "..", "../beside", "a/b", "/etc/passwd", "a\\b", "none"])
def test_names_that_are_no_files_of_a_folder(folder, name):
    with pytest.raises(ValueError, match=r"is not the name of a file in it|none is missing"):
        inside(folder, name)


@pytest.mark.parametrize("target", ["../beside", "/dev/null", "../in2/file"])
def test_links_out_of_a_folder(folder, target):
    """Links out of an untrusted folder are refused, even into a sibling whose name starts with the folder's name."""
    (folder.parent / "in2").mkdir()
    (folder.parent / "in2" / "file").write_text("secret")
    (folder / "link").symlink_to(target)
    with pytest.raises(ValueError, match=r"link is a link to .*, outside the folder"):
        inside(folder, "link")


def hub_cache(root: Path, saved: Path, repository: str = "models--owner--name") -> Path:
    """Copy a checkpoint to a folder of links to blobs, as the hub's client stores it, and return the folder."""
    blobs, snapshot = root / repository / "blobs", root / repository / "snapshots" / "1a2b"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(saved.iterdir()):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_the_hubs_cache_consists_of_links(saved, tmp_path, monkeypatch):
    snapshot = hub_cache(tmp_path, saved)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo: str(snapshot))
    assert omnikit.load("owner/name").model.llm.tokenizer.encode("two")
    assert omnikit.load(snapshot).model.llm.tokenizer.encode("two")
    with pytest.raises(ValueError, match="outside the folder"):
        omnikit.load(hub_cache(tmp_path, saved, "anything"))


def test_what_is_no_regular_file_or_too_large(folder):
    os.mkfifo(folder / "pipe")
    for name, words in (("pipe", "a named pipe"), (".", "a folder"), ("none", "cannot be read")):
        with pytest.raises(ValueError, match=words):
            check_regular(folder / name)
        with pytest.raises(ValueError, match=f"{words}|cannot be read"):
            read_bytes(folder / name, 99)
    assert read_bytes(folder / "file", 4) == b"text"
    with pytest.raises(ValueError, match="has 4 bytes, more than the 3"):
        read_bytes(folder / "file", 3)


def test_text_and_json(folder):
    (folder / "file").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_text(folder / "file", 99) == "[1]" and read_json(folder / "file") == [1]
    for content, words in ((b"\xff", "not UTF-8"), (b"[" * 9999, "not JSON"), (b"[1", "not JSON")):
        (folder / "file").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read_json(folder / "file")


def test_networks_are_bounded_while_they_are_built():
    weights = [torch.empty(10, device="meta")]
    with torch.device("meta"), limited(weights):
        torch.nn.Linear(1000, 1000)
    with torch.device("meta"), limited(weights), pytest.raises(ValueError, match="much larger than its weights"):
        torch.nn.Linear(10**5, 10**5)
    with limited(weights), pytest.raises(ValueError, match=r"more than 2020 modules"):
        torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Identity()) for _ in range(3000)))
    torch.nn.Sequential(*(torch.nn.Identity() for _ in range(3000)))


def test_memory_that_no_machine_has():
    check_memory(2**20, "f")
    with pytest.raises(ValueError, match=r"f: needs .* GiB of memory, this machine has"):
        check_memory(2**60, "f")
