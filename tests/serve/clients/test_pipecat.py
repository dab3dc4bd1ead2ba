"""Talk to the server with pipecat's OpenAI realtime service, unmodified, in a virtual environment of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("pipecat_bot.py")


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """Return the Python of an environment with pipecat."""
    folder = tmp_path_factory.mktemp("pipecat")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "pipecat-ai[openai]==1.14.*"]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    yield python
    shutil.rmtree(folder)  # half a gigabyte


@pytest.mark.long
def test_spoken_pushed_and_interrupted_turns(server, speech, python, tmp_path):
    for name in ("capital", "sum"):
        (tmp_path / f"{name}.pcm").write_bytes(speech(name))
    command = [python, SCRIPT, server.websocket, server.token, "capital.pcm", "sum.pcm"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["greeting"]
    assert "capital" in found["spoken"]
    assert "capital" in found["heard"]
    assert found["seconds"] > 1
    assert found["pushed"]
    assert 1 < found["interrupted"] < 11  # of more than 12 seconds
