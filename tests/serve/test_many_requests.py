"""Many requests at once, a third of them malformed or cut off: each answer as if alone, and nothing is left behind."""

from __future__ import annotations

import logging
import random
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from omnikit.api import Omni
from omnikit.serve.serving import Serving
from omnikit.serve.settings import ServerSettings
from tests.repository import ROOT
from tests.serve.conftest import NAME, running
from tests.serve.many_requests import BROKEN, PATIENCE, TOLERANCES, WELL_FORMED, call
from tests.serve.watched_server import FIGURES, add_figures

STEPS = 16
"""Maximum number of decode steps of an answer."""
QUICK = (
    "speech as wav", "speech as mp3", "transcription as events", "dialog", "spoken answer as events", "published",
    "Realtime, written", "Realtime, detected",
)  # fmt: skip
"""Well-formed requests of the quick test, at least one of each call."""
AT_ONCE = 8
"""Number of clients that send requests at the same time."""
BUSY = ("waiting", "slots", "sessions", "requests")
"""Figures that are 0 when nobody is served."""
GROWTH = 1.05


def figures(url: str, query: str = "") -> dict:
    return call(url, FIGURES + query, method="GET").json


def at_rest(url: str, before: dict | None = None) -> dict:
    """Return the server's figures once it serves nobody, and holds no more files and threads than before.

    Args:
        before: earlier figures.
    """
    most = dict.fromkeys(BUSY, 0) | {name: before[name] for name in ("files", "threads") if before}
    end = time.monotonic() + PATIENCE
    while any((now := figures(url))[name] > most[name] for name in most):
        assert time.monotonic() < end, f"{now}, not at most {most}"
        time.sleep(0.1)
    return figures(url, "?trim=true")


def plan(number: int, kinds: Collection[str], draw: random.Random) -> list[str]:
    """Return the names of some requests in random order, a third of them broken; each occurs as often as others."""
    broken = number // 3
    names = [*cycled(list(BROKEN), broken, draw), *cycled(list(kinds), number - broken, draw)]
    draw.shuffle(names)
    return names


def cycled(names: list[str], number: int, draw: random.Random) -> list[str]:
    draw.shuffle(names)
    return (names * (number // len(names) + 1))[:number]


def check_requests(url: str, number: int, draw: random.Random, kinds: Collection[str] = WELL_FORMED) -> list[dict]:
    """Send requests in two halves, check all answers, and return the server's figures before, between and after.

    Args:
        url: address of a watched server.
        number: number of requests.
        draw: random generator of their order.
        kinds: names of the well-formed ones.
    """
    halves = plan(number // 2, kinds, draw), plan(number - number // 2, kinds, draw)
    alone = {name: WELL_FORMED[name](url) for name in kinds}

    def send(name: str) -> str | None:
        """Send a request, and return what is wrong with its answer."""
        try:
            if name in BROKEN:
                BROKEN[name](url)
            elif not (found := WELL_FORMED[name](url)).like(alone[name], TOLERANCES.get(name, 2 / 32768)):
                return f"{name}: {found} instead of {alone[name]}"
        except Exception as error:  # of any kind, so that all are reported
            return f"{name}: {error!r}"
        return None

    found = [at_rest(url)]
    for half in halves:
        began = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as clients:
            wrong = [each for each in clients.map(send, half) if each]
        assert not wrong, "\n".join(wrong)
        found.append(at_rest(url, found[0]) | {"seconds": time.monotonic() - began})
    assert found[0]["left"] == found[1]["left"] == found[2]["left"]
    metrics = call(url, "/metrics", method="GET").body.decode()
    assert not re.findall(r'^omnikit_http_responses_total\{status="5..".*', metrics, re.MULTILINE)
    return found


def test_some_requests(omni, caplog):
    system = Omni(omni.model, decoding=replace(omni.decoding, max_steps=STEPS), engine=omni.decoder.engine)
    with running(Serving(ServerSettings(port=0, request_seconds=PATIENCE), {NAME: system}), add_figures) as server:
        check_requests(server.url, 40, random.Random(1), QUICK)
    system.close()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@contextmanager
def watched(log: Path) -> Iterator[str]:
    """Context manager that runs a server in a process of its own, and gives its address."""
    command = [sys.executable, "-m", "tests.serve.watched_server", str(STEPS), str(PATIENCE)]
    with log.open("w") as errors, subprocess.Popen(command, stdout=-1, stderr=errors, text=True, cwd=ROOT) as process:
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()
    assert process.returncode == 0


@pytest.mark.long
def test_many_requests(tmp_path, capsys):
    log = tmp_path / "log"
    with watched(log) as url:
        before, first, second = check_requests(url, 500, random.Random(2))
    with capsys.disabled():
        for name, found in (("before", before), ("first half", first), ("second half", second)):
            print(name, found)
    assert not second["left"]
    assert second["memory"] <= GROWTH * first["memory"]
    assert "Traceback" not in log.read_text() and " ERROR " not in log.read_text()
