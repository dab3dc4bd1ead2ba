"""The code of docs/adding_a_part.md and of egs/swap, as it stands there."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import soundfile

from omnikit import cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding_a_part.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.M | re.S)


def run(line: str) -> None:
    """A line of a shell block, in this process."""
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
    """A reader's folder, to which commands and imports refer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", sys.argv)
    yield tmp_path
    sys.modules.pop("spectrum", None)


def test_the_page_says_what_it_makes_and_it_works(folder, capsys):
    files = 0
    for language, text in BLOCKS:
        name = re.match(r"# (\w+\.\w+)\n", text)
        if name:
            (folder / name[1]).write_text(text)
            files += 1
        elif language == "sh":
            for line in text.splitlines():
                run(line)
        else:
            exec(compile(text, "adding_a_part.md", "exec"), {})
    assert files == 3
    out = capsys.readouterr().out
    assert re.search(r"^encoder +spectrum +spectrum\.Spectrum .* 96 wide, 50 frames/s", out, re.M)


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
