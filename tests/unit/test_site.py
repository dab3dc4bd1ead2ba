"""Test the documentation site: it builds strictly, its pictures are up to date, and its quotations exist."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import DOCS, ROOT, blocks, page

DRAWING = runpy.run_path(str(DOCS / "img" / "draw.py"))
needs_mkdocs = pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs: mkdocs")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Build the documentation site like `make docs`, in a temporary folder, and return the folder."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]  # --quiet passes all
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@needs_mkdocs
def test_every_page_and_docstring_is_on_the_site(site):
    for path in DOCS.rglob("*.md"):
        assert (site / path.relative_to(DOCS).with_suffix(".html")).is_file()
    assert "omnikit.api.Omni.ask" in (site / "api" / "omnikit.html").read_text(encoding="utf-8")
    assert (site / "recipes" / "index.html").is_file() and (site / "egs" / "mini" / "index.html").is_file()


@needs_mkdocs
def test_reading_it_fetches_nothing(site):
    """Scripts, styles and pictures of every page of the documentation are files of the site itself."""
    fetched = re.compile(r'<(?:script|img|link|source|audio)\b[^>]*?\b(?:src|href)="(?:https?:)?//([^"]+)"')
    found = {name for file in site.rglob("*.html") for name in fetched.findall(file.read_text(encoding="utf-8"))}
    assert found == set()


@pytest.mark.parametrize("name", DRAWING["PICTURES"])
def test_a_picture_is_as_drawn(name):
    """Each picture of the documentation equals the output of its script `docs/img/draw.py`."""
    assert (DOCS / "img" / name).read_text(encoding="utf-8") == DRAWING["PICTURES"][name]()


def test_the_tree_shows_every_room_and_no_other():
    drawn = {path for row in DRAWING["ROOMS"] for path, _ in row}
    assert [path for path in drawn if not (ROOT / path).exists()] == []
    tracked = {*ROOT.glob("omnikit/*/"), *(ROOT / name for name in ("recipes", "egs", "hparams", "docs", "tests"))}
    rooms = {path.relative_to(ROOT).as_posix() for path in tracked if path.name not in ("__pycache__", "part_files")}
    assert rooms - drawn == set()


def test_errors_that_are_explained_are_errors_of_the_code():
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "omnikit").rglob("*.py"))
    quoted = re.findall(r"^\| `([^`]+)` \|", page("troubleshooting.md"), re.M)
    assert len(quoted) > 10
    pieces = {piece.strip(" :;,") for message in quoted for piece in message.split("..")}
    assert sorted(piece for piece in pieces if piece not in sources) == []


def test_the_script_for_slurm_is_one(tmp_path):
    """The script for Slurm parses, asks Slurm for what the recipe needs, and runs a command that exists."""
    (script,) = (block for block in blocks("gpus.md") if block.title)
    file = tmp_path / script.title
    file.write_text(script.text)
    assert subprocess.run(["bash", "-n", file], capture_output=True, text=True).stderr == ""
    run = tmp_path / "run"
    run.mkdir()
    for name, text in SLURM.items():
        (run / name).write_text(f"#!/bin/bash\n{text}\n")
        (run / name).chmod(0o755)
    environment = {
        "PATH": f"{run}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "20007",
        "SLURM_JOB_NODELIST": "a[1-4]", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NTASKS": "32",
    }  # fmt: skip
    job = subprocess.Popen(["bash", file], env=environment, stdout=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "9 1 32 a1 20007: train.py hparams/stage1.yaml --data_folder /shared/data\n"
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=30)
    assert job.returncode == 0
    assert said.splitlines()[1:] == ["checkpoint saved", "requeue 20007"]


SLURM = {
    "srun": 'shift; "$@" & trap "kill -TERM $!" TERM; wait; wait',
    "scontrol": 'if [ "$1" = show ]; then printf "a1\\na2\\n"; else echo "$@"; fi',
    "python": 'trap "echo checkpoint saved; exit 143" TERM\n'
    'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT: $*"\nsleep 60 > /dev/null & wait',
}
"""Stand-ins for the commands that the script for Slurm uses, by name."""
