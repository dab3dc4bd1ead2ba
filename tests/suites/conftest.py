"""Fixtures of the tests of public suites: candidates that answer from a script, the shipped system, and a judge."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from omnikit.api import load
from omnikit.evaluate.recipe_checks import check_evaluation
from omnikit.evaluate.suites.answering import Candidate, SystemAnswerer
from omnikit.evaluate.suites.items import SuiteItems, write_items
from omnikit.evaluate.suites.suite import Suite
from omnikit.generate import Decoding
from omnikit.hparams import load_recipe
from omnikit.offline.batches import DecodedAnswer, Problem
from tests.repository import ROOT


def with_prompts(kind: type[Suite]) -> Suite:
    """Return a suite with the prompts of its recipe."""
    return kind(ROOT / "recipes" / kind.name / "prompts")


def prepare_miniature(suite: Suite, write: Callable[[Path], Path], folder: Path) -> SuiteItems:
    """Prepare a miniature, which `write` makes, in `data` of a folder, and return its questions."""
    return write_items(folder / "data", suite.name, suite.layout, suite.read(write(folder / "published")))


class ScriptedAnswerer:
    """An `Answerer` that says what a mapping from ids has; codes are the lengths of texts, and sound is a tone.

    `asked` counts how often each task asked each question.
    """

    sample_rate, max_seconds = 16000, None

    def __init__(self, script: Mapping[str, str | Problem]):
        self.script, self.asked = script, []

    def respond(self, task, batch_size):
        def answers(entries):
            for entry in entries:
                self.asked.append((task.name, entry.id))
                said = self.script[entry.id]
                frames = len(said) if task.speaks and isinstance(said, str) else 0
                codes = torch.ones(1, frames, dtype=torch.long)
                yield entry, said if isinstance(said, Problem) else DecodedAnswer(said, codes)

        return answers

    def decode(self, codes):
        return torch.sin(torch.arange(160 * codes.shape[1]) / 4) / 4


@pytest.fixture
def scripted() -> Callable[..., tuple[Candidate, ScriptedAnswerer]]:
    """Function that returns a candidate that answers by a mapping from ids, and what it opens."""

    def make(script: Mapping[str, str | Problem], name: str = "a") -> tuple[Candidate, ScriptedAnswerer]:
        answerer = ScriptedAnswerer(script)
        return Candidate({"checkpoint": name, "written": 1}, lambda: answerer), answerer

    return make


@pytest.fixture
def options() -> Callable[..., dict]:
    """Function that returns the options of a suite's recipe with flags: `options("BigBenchAudio", data, out, ..)`."""

    def read(suite: str, data: Path, out: Path, *flags: str) -> dict:
        folders = ["--data_folder", str(data), "--output_folder", str(out)]
        recipe = ROOT / "recipes" / suite / "hparams" / "eval.yaml"
        return load_recipe([str(recipe), *folders, *map(str, flags)], check=check_evaluation).hparams

    return read


@pytest.fixture(scope="session")
def shipped() -> Candidate:
    """The shipped system as a candidate, loaded once, with short answers."""
    omni = load()
    omni.decoding = Decoding(max_steps=24)
    return Candidate({"checkpoint": None, "written": None}, lambda: SystemAnswerer(omni))


class StubJudge(ThreadingHTTPServer):
    """A server that answers chat completions by `say`, and fails with the statuses in `fail` first."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies, self.headers, self.fail = [], [], []
        self.say = lambda prompt: "CORRECT"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.fail:
            self.send_error(self.server.fail.pop(0))
            return
        self.server.bodies.append(body)
        self.server.headers.append(dict(self.headers))
        message = {"role": "assistant", "content": self.server.say(body["messages"][-1]["content"])}
        data = json.dumps({"choices": [{"message": message}]}).encode()
        self.send_response(200 if self.path == "/v1/chat/completions" else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def stub(monkeypatch) -> Iterator[StubJudge]:
    """A running stub of an LLM judge."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = StubJudge()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
