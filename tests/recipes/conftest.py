"""Fixtures for tests of recipes: an untrained system of mini parts, a small corpus, and scripts run like a user's."""

import io
import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from omnikit import checkpoint, cli
from omnikit.hparams import build_parts

ROOT = Path(__file__).parents[2]
MINI_SYSTEM = ROOT / "egs" / "mini" / "hparams" / "system.yaml"
"""Path of the overrides that make a recipe use the mini system's parts and the corpus of the fixture `data`."""
TEXTS = ["what is two plus three", "two plus three is five", "the sky is blue", "say the color of milk"]


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = build_parts({"codec": "snac_mini"})["model"]
    folder = tmp_path_factory.mktemp("system") / "checkpoint"
    checkpoint.save(model.eval(), folder)
    return folder


@pytest.fixture
def run():
    """Function that runs a Python script with arguments as a process in the script's folder, and returns the process.
    """

    def call(script: str, *arguments: str) -> subprocess.CompletedProcess:
        path = ROOT / script
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, path.name, *map(str, arguments)]
        return subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True, timeout=300)

    return call


def flac(i: int, seconds: float) -> bytes:
    wav = torch.randn(int(16000 * seconds), generator=torch.Generator().manual_seed(i)) / 10
    buffer = io.BytesIO()
    soundfile.write(buffer, wav.numpy(), 16000, format="FLAC")
    return buffer.getvalue()


def changed(before: Path, after: Path) -> set[str]:
    """Return the names of the parts of a system whose weights differ between two checkpoints."""
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    return {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Folder of manifests and question tables with four entries each; one recording is damaged."""
    return write_data(tmp_path_factory.mktemp("data"))


def write_data(folder: Path) -> Path:
    """Write manifests and question tables with four entries each, in which one recording is damaged."""
    (folder / "manifests").mkdir()
    (folder / "qa").mkdir()
    for name in ("train-clean", "train-voice", "dev-clean", "dev-voice"):
        lines = ["ID,duration,speaker,t1,a1"]
        for i, text in enumerate(TEXTS):
            wav = folder / f"{name}-{i}.flac"
            wav.write_bytes(flac(i, 0.3 + 0.1 * i))
            lines.append(f"{name}-{i},0.5,7,{text},{wav}")
        (folder / "manifests" / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (folder / "train-clean-2.flac").write_bytes(b"broken")
    for name in ("train", "dev"):
        rows = [
            {"id": f"{name}-q{i}", "t1": text, "t2": TEXTS[1], "kind": "x", "a1": flac(i, 0.4)}
            for i, text in enumerate(TEXTS)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "qa" / f"{name}.parquet")
        turns = [{**row, "dialog": f"{name}-d{i // 2}", "turn": i % 2} for i, row in enumerate(rows)]
        pq.write_table(pa.Table.from_pylist(turns), folder / "qa" / f"dialogs_{name}.parquet")
    others = [{**turn, "id": f"more-{turn['id']}", "dialog": f"more-{turn['dialog']}"} for turn in turns]
    pq.write_table(pa.Table.from_pylist(others), folder / "qa" / "dialogs_more.parquet")
    written = pa.Table.from_pylist([{**turn, "dialog": f"written-{turn['dialog']}"} for turn in turns]).drop(["a1"])
    for name in ("dialogs_written", "text"):
        pq.write_table(written, folder / "qa" / f"{name}.parquet")
    answers = [{"t2": TEXTS[1], "a2": flac(9, 0.6)}]
    pq.write_table(pa.Table.from_pylist(answers), folder / "qa" / "answers.parquet")
    return folder


@contextmanager
def logging_kept() -> Iterator[None]:
    """Context manager that restores the root logger at its end, since a script may add a handler for its log file."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    # SpeechBrain's configuration of logging closes all existing handlers; closing absl's handler also closes the stderr
    # that it was imported with, which may be the file to which pytest captures output
    closed_together, logging._handlerList = logging._handlerList, []
    try:
        yield
    finally:
        logging._handlerList = closed_together
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Function that runs a script or the command `omnikit` in this process, as if a user had called it.

    `run_here("omnikit", "ask", ..)` or `run_here("recipes/..py", ..)` returns exit status, stdout and stderr.
    """

    def call(script: str, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with monkeypatch.context() as patch, logging_kept():
            patch.setattr(sys, "path", list(sys.path))
            before = set(sys.modules)
            path = ROOT / script
            patch.setattr(sys, "argv", [path.name, *map(str, arguments)])
            try:
                if script == "omnikit":
                    cli.main()
                else:
                    sys.path.insert(0, str(path.parent))
                    patch.chdir(path.parent)
                    runpy.run_path(path.name, run_name="__main__")
                status = 0
            except SystemExit as end:
                status = end.code or 0
            finally:
                for name in set(sys.modules) - before:  # other recipes have modules of the same names
                    if str(vars(sys.modules[name]).get("__file__")).startswith(str(ROOT / "recipes")):
                        del sys.modules[name]
        return status, *capsys.readouterr()

    return call
