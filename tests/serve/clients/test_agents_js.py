"""Talk to the server with @openai/agents-realtime over WebSocket, in node, unmodified."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("agents.mjs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with the package from npm, and the script."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("agents")
    (folder / "package.json").write_text("{}")
    command = ["npm", "install", "--no-audit", "--no-fund", "@openai/agents-realtime@0.20", "zod@4"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    return Path(shutil.copy(SCRIPT, folder)).parent


@pytest.mark.long
def test_spoken_pushed_written_and_interrupted_turns(server, speech, folder):
    for name in ("capital", "sum"):
        (folder / f"{name}.pcm").write_bytes(speech(name))
    command = ["node", "agents.mjs", server.websocket, server.token, "capital.pcm", "sum.pcm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "capital" in found["spoken"]
    assert "capital" in found["heard"]
    assert found["pushed"]
    assert found["written"]
    assert found["seconds"] > 1
    assert found["history"] == ["user completed", "assistant completed"] * 3
    assert found["interrupted"] == ["cancelled", "turn_detected"]
    assert found["playedMs"] > 0
    assert not found["errors"]
