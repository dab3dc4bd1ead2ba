"""Tests that the package's wheel, installed without a checkout, contains all that users need."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from urllib.request import urlopen

import pytest
import soundfile

import omnikit
from omnikit.checkpoint import PRETRAINED
from tests.pages import ROOT, commands, write_files

SCRIPTS = "recipes/VoiceAssistant/QA"
BUILT_FROM = ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE", "hparams", "omnikit", SCRIPTS)
LARGEST = 45e6
"""Maximum size of the wheel in bytes."""
QUESTION = ROOT / "egs" / "mini" / "questions" / "sum.wav"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def called(*command: object, folder: Path) -> str:
    """Run a shell command and return its output."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Path of the package's wheel, built from a copy of the checkout so that it holds no files of an earlier build."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, folder / name)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist")
    called(sys.executable, "-m", "pip", "wheel", *options, ".", folder=folder)
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Folder of the commands of a virtual environment with the wheel; other packages come from the present environment.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/*/site-packages"))
    # .pth files in the folder that is named here are not read, and so neither is that of an editable checkout
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    called(*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel, folder=folder)
    return folder / "bin"


def test_its_name_has_the_version(wheel):
    assert wheel.name == f"omnikit-{omnikit.__version__}-py3-none-any.whl"


def test_the_changelog_begins_with_the_version_or_what_is_not_released():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] in ("Unreleased", omnikit.__version__)


def test_it_answers_from_an_empty_folder(installed, tmp_path):
    where = called(installed / "python", "-c", "import omnikit; print(omnikit.__file__)", folder=tmp_path)
    assert Path(where).is_relative_to(installed.parent)
    assert called(installed / "omnikit", "--version", folder=tmp_path) == f"omnikit {omnikit.__version__}\n"
    assert called(installed / "omnikit", "ask", QUESTION, "-o", "answer.wav", folder=tmp_path).strip()
    assert soundfile.info(tmp_path / "answer.wav").duration > 0.5


def test_it_holds_every_part_file_the_shipped_systems_and_the_page(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (
        (ROOT / "hparams", "omnikit/part_files"),
        (PRETRAINED, "omnikit/pretrained"),
        (ROOT / "omnikit" / "serve" / "page", "omnikit/serve/page"),
    ):
        files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        assert files and {f"{inside}/{file}" for file in files} <= names
    assert {"omnikit/pretrained/mini/model.safetensors", "omnikit/pretrained/mini_whisper/model.safetensors"} <= names
    assert wheel.stat().st_size < LARGEST


@pytest.mark.long
def test_it_shows_and_times_the_shipped_system(installed, tmp_path):
    assert re.search(r"^codec +mel_rvq ", called(installed / "omnikit", "info", folder=tmp_path), re.M)
    assert "real-time factor" in called(installed / "omnikit", "bench", "--quick", folder=tmp_path)


@pytest.mark.long
def test_it_serves_the_page(installed, tmp_path):
    """The command serves every file of the page as it is in the checkout, and ends with status 0 at SIGTERM."""
    command = [installed / "omnikit", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().split()[0]
            folder = ROOT / "omnikit" / "serve" / "page"
            for file in (file for file in folder.rglob("*") if file.is_file()):
                got = urlopen(f"{url}/{file.relative_to(folder).as_posix()}", timeout=60)
                assert got.read() == file.read_bytes()
            assert urlopen(url, timeout=60).read() == (folder / "index.html").read_bytes()
        finally:
            process.terminate()
        assert process.wait(60) == 0


@pytest.mark.long
def test_a_recipe_of_the_docs_trains(installed, tmp_path):
    write_files("train.md", tmp_path)
    for line in commands("train.md"):
        called("bash", "-c", f"PATH={installed}:$PATH {line}", folder=tmp_path)
    assert (tmp_path / "results" / "finetuned" / "model.safetensors").is_file()
