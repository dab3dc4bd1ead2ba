"""Tests of the page in a real Chromium, whose microphone hears a recording, against a small Realtime server."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.serve.stand_in import PAGE, RATE, Script, served

ROOT = Path(__file__).parents[2]
QUESTIONS = ROOT / "egs" / "mini" / "questions"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
HARMLESS = ("Failed to load resource", "WebSocket connection to")
"""Beginnings of messages by which Chromium reports a refusal that a test provokes."""


def microphone(path: Path) -> list[str]:
    """Return options of Chromium that make a recording its microphone, played once each time that it is opened."""
    return [
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={path}%noloop",
        "--use-fake-ui-for-media-stream",
        "--no-sandbox",
    ]


@contextmanager
def chromium(*options: str) -> Iterator:
    """Run a Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(options))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> Path:
    """A recording with two questions: 2.5 s after its begin of 0.5 s the second one follows the first."""
    pieces = [np.zeros(8000)]
    for name in ("sum.wav", "color.wav"):
        wav, rate = soundfile.read(QUESTIONS / name)
        assert rate == 16000
        pieces += [wav, np.zeros(24000)]
    path = tmp_path_factory.mktemp("said") / "said.wav"
    soundfile.write(path, np.concatenate(pieces), 16000)
    return path


@pytest.fixture(scope="module")
def browser(said):
    with chromium(*microphone(said)) as running:
        yield running


@dataclass
class Visit:
    """An open page with what it complained about on the console."""

    page: object
    script: Script
    complaints: list[str] = field(default_factory=list)

    def wait(self, selector: str, seconds: float = 10):
        return self.page.wait_for_selector(selector, timeout=1000 * seconds)

    def wait_for_turns(self, number: int, status: str = "done") -> None:
        """Wait until a number of turns have a status."""
        self.page.locator(f'[data-status="{status}"]').nth(number - 1).wait_for(timeout=10_000)

    def counts(self) -> dict[str, int]:
        """Return the counts of the player: samples received and played, and under-runs."""
        return {name: int(n) for name, n in self.page.evaluate("({...document.getElementById('tape').dataset})").items()}

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]

    def answers(self) -> list[str]:
        return self.texts("#turns .answer .text")

    def problem(self) -> str:
        self.wait("#problem:not([hidden])")
        return self.page.locator("#problem p").inner_text()

    def write(self, text: str) -> None:
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")


@contextmanager
def visit(browser, script: Script, path: str = "", **options) -> Iterator[Visit]:
    """Open the page, and check at the end that it complained about nothing but what the server refused."""
    with served(script) as url:
        page = browser.new_page(**options)
        visited = Visit(page, script)
        page.on("console", lambda message: visited.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: visited.complaints.append(f"error: {error}"))
        page.goto(url + path)
        try:
            yield visited
        finally:
            page.close()
        assert [text for text in visited.complaints if not text.partition(": ")[2].startswith(HARMLESS)] == []


def only(script: Script, kind: str) -> dict:
    [event] = [event for event in script.events if event["type"] == kind]
    return event


def test_the_questions_are_those_of_the_example():
    names = sorted(path.name for path in (PAGE / "questions").iterdir())
    assert names == ["capital.wav", "color.wav", "sum.wav"]
    assert all((PAGE / "questions" / name).read_bytes() == (QUESTIONS / name).read_bytes() for name in names)


def test_it_listens_answers_and_is_interrupted(browser):
    """Speak hands-free, over the answer a second time; the second answer is heard to its end."""
    with visit(browser, Script(seconds=2.5, pause=0.15)) as here:
        here.wait('#connection[data-state="open"]')
        here.page.check("input[value=free]")
        here.page.click("#talk")
        here.wait('[data-status="interrupted"]')
        here.wait('[data-status="done"]')
        assert here.page.locator("#talk[aria-pressed=true]").count() == 1
        here.page.click("#talk")
        cut = only(here.script, "conversation.item.truncate")["audio_end_ms"]
        assert 500 < cut < 2500
        counts = here.counts()
        assert counts["underruns"] == 0
        heard = counts["played"] - 2.5 * RATE
        assert abs(heard / RATE * 1000 - cut) < 250  # what was under way to the loudspeaker
        assert counts["received"] >= counts["played"]
        assert "response.cancel" not in here.script.types()  # the server has done it
        second, first = here.answers()
        assert second.startswith("this is the tone") and first.startswith("this is the tone")
        assert here.texts(".question .text") == ["A spoken question"] * 2
        lengths = [float(text.split()[0]) for text in here.texts(".question .length")]
        assert all(1.2 < length < 3 for length in lengths)
        assert here.page.locator("#latency b").inner_text().endswith(" s")


def test_a_held_key_a_text_and_a_recording_are_questions(browser):
    with visit(browser, Script(seconds=0.8)) as here:
        here.wait('#connection[data-state="open"]')
        here.page.keyboard.down("Space")
        time.sleep(2)
        here.page.keyboard.up("Space")
        here.wait("li:nth-of-type(1)[data-status=done]")
        assert here.counts() == {"received": 0.8 * RATE, "played": 0.8 * RATE, "underruns": 0}
        here.write("and <b>three</b>")
        here.wait_for_turns(2)
        here.page.click("text=What color is the sky?")
        here.wait_for_turns(3)
        assert here.counts() == {"received": 2.4 * RATE, "played": 2.4 * RATE, "underruns": 0}
        assert here.texts(".question .text") == ["What color is the sky?", "and <b>three</b>", "A spoken question"]
        assert here.script.types()[:4] == [
            "session.update", "input_audio_buffer.clear", "input_audio_buffer.commit", "response.create"
        ]
        assert only(here.script, "conversation.item.create")["item"]["content"][0]["text"] == "and <b>three</b>"
        here.page.click("#turns li:nth-of-type(1) .answer .recording button")
        here.wait("#turns li:nth-of-type(1) .answer .recording button.plays")
