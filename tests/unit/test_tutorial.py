"""Test that the code in docs/write/ and in egs/swap runs as printed."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import soundfile

from omnikit import cli
from tests.pages import blocks, commands, write_files

ROOT = Path(__file__).parents[2]


def run(line: str) -> None:
    """Run one command line of a documentation page in this process."""
    words = shlex.split(line)
    assert words.pop(0) == "PYTHONPATH=."
    if words[0] == "omnikit":
        sys.argv = words
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
    else:
        assert words[:3] == ["python", "-m", "pytest"]
        assert pytest.main([*words[3:], "-p", "no:cacheprovider"]) == 0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a temporary working folder in which the commands and imports of a documentation page run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", sys.argv)
    shutil.copyfile(ROOT / "egs" / "mini" / "questions" / "sum.wav", tmp_path / "question.wav")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        # not by getattr, at which lazy modules of other packages are imported
        if str(vars(sys.modules[name]).get("__file__")).startswith(str(tmp_path)):
            del sys.modules[name]


SHOWN = {
    "encoder": r"^encoder +spectrum +spectrum\.Spectrum .* 96 wide, 50 frames/s",
    "codec": r"^codec +beep +beep\.Beep .* 1 codebooks, of 16 codes, 12\.5 frames/s",
    "pattern": r"^pattern +coarse_fine +coarse_fine\.CoarseFine .* 2 audio streams",
}
"""Mapping from a page on writing a part to a pattern of the line in which `omnikit info` shows the page's part."""


@pytest.mark.parametrize(("page", "line"), SHOWN.items())
def test_a_part_of_a_page_is_made_shown_and_tested(page, line, folder, capsys):
    """Each page on writing a part shows its class, YAML file and test; its commands run and show the part."""
    assert len(write_files(f"write/{page}.md", folder)) == 3
    for block in blocks(f"write/{page}.md"):
        if block.language == "sh":
            for command in block.text.splitlines():
                run(command)
        elif not block.title:
            exec(compile(block.text, page, "exec"), {})
    assert len(commands(f"write/{page}.md")) >= 2
    assert re.search(line, capsys.readouterr().out, re.M)


def test_the_engine_of_the_page_answers_as_the_systems_own(folder):
    """The code on the page about writing an engine runs; it asserts answers equal to those of the system's own engine.
    """
    assert write_files("write/engine.md", folder) == ["plain_engine.py"]
    (compared,) = [block.text for block in blocks("write/engine.md") if not block.title]
    assert "assert" in compared
    exec(compile(compared, "engine", "exec"), {})


def test_swap_learns_with_parts_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "egs" / "swap"))
    monkeypatch.setattr(sys, "argv", ["swap.py", "--output_folder", str(tmp_path)])
    runpy.run_path(str(ROOT / "egs" / "swap" / "swap.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "own_parts.Whistle" in out
    for name in ("low", "high"):
        assert out.count(f"question '{name}', answer '{name}'") == 2, out
    for first, last in re.findall(r"loss ([\d.]+) at first, ([\d.]+) after", out):
        assert float(last) < 0.1 * float(first)
    sounds = {file.name: soundfile.info(file).duration for file in tmp_path.glob("*.wav")}
    assert len(sounds) == 4
    assert all(seconds == pytest.approx(0.64) for seconds in sounds.values())
