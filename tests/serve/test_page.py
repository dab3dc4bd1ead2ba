"""Tests of the page in a real Chromium, whose microphone hears a recording, against a small Realtime server."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from tests.serve.conftest import wait_for
from tests.serve.stand_in import FULL, PAGE, RATE, Script, served

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


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable]:
    """Function that runs a Chromium with some options."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        yield lambda options: driver.chromium.launch(executable_path=CHROMIUM, args=options)


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
def browser(launch, said):
    with launch(microphone(said)) as running:
        yield running


@dataclass
class Visit:
    """An open page with what it complained about on the console."""

    page: object
    script: Script | None = None
    complaints: list[str] = field(default_factory=list)

    def wait(self, selector: str, seconds: float = 10):
        return self.page.wait_for_selector(selector, timeout=1000 * seconds)

    def wait_for_turns(self, number: int, status: str = "done", seconds: float = 10) -> None:
        """Wait until a number of turns have a status."""
        self.page.locator(f'[data-status="{status}"]').nth(number - 1).wait_for(timeout=1000 * seconds)

    def counts(self) -> dict[str, int]:
        """Return the counts of the player: samples received and played, and under-runs, which a busy machine causes."""
        counts = self.page.evaluate("({...document.getElementById('tape').dataset})")
        return {name: int(count) for name, count in counts.items()}

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
def visit(browser, script: Script, host: str = "127.0.0.1", **options) -> Iterator[Visit]:
    """Open the page of the small server."""
    with served(script) as url, opened(browser, url.replace("127.0.0.1", host), script, **options) as visited:
        yield visited


@contextmanager
def opened(browser, url: str, script: Script | None = None, **options) -> Iterator[Visit]:
    """Open a page, and check at the end that it complained about nothing but what the server refused."""
    page = browser.new_page(**options)
    visited = Visit(page, script)
    page.on("console", lambda message: visited.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: visited.complaints.append(f"error: {error}"))
    page.goto(url)
    try:
        yield visited
    finally:
        page.close()
    assert [text for text in visited.complaints if not text.partition(": ")[2].startswith(HARMLESS)] == []


TAP = """() => {
  const press = (type) => document.body.dispatchEvent(new KeyboardEvent(type, { code: "Space", bubbles: true }));
  new MutationObserver(() => press("keyup")).observe(document.getElementById("turns"), { childList: true });
  press("keydown");
}"""
"""Press the space bar and let it go as soon as the turn has begun."""

RESAMPLED = """async ([samples, rate]) => {
  const { Resampler } = await import("/resampler.js");
  const [whole, cut] = [new Resampler(rate, 24000), new Resampler(rate, 24000)];
  const pieces = [];
  for (let at = 0, n = 1; at < samples.length; at += n, n = (n * 7) % 331) {
    pieces.push(...cut.push(Float32Array.from(samples.slice(at, at + n))));
  }
  return [[...whole.push(Float32Array.from(samples))], pieces];
}"""
"""Resample samples at once, and in pieces of many lengths."""

BUFFERED = """async () => {
  const { JitterBuffer } = await import("/jitter_buffer.js");
  const buffer = new JitterBuffer(24000);
  const pull = () => { const out = new Float32Array(128); buffer.pull(out); return [...out]; };
  const ones = (n) => buffer.push(new Float32Array(n).fill(1));
  ones(2000);
  const before = buffer.played + pull().reduce((a, b) => a + b);
  ones(1000);
  const heard = [];
  while (buffer.underruns === 0) heard.push(...pull());
  const step = Math.max(...heard.slice(1).map((sample, i) => Math.abs(sample - heard[i])));
  ones(3000);
  pull();
  const afterUnderrun = buffer.played - 3000;
  ones(2000);
  pull();
  const resumed = buffer.played - 3000;
  const until = buffer.played;
  buffer.stop();
  while (!buffer.ended) pull();
  const stopped = buffer.played - until;
  return { before, step, underruns: buffer.underruns, afterUnderrun, resumed, stopped, ended: buffer.ended };
}"""
"""Play a row of ones with an under-run and a stop, and return counts and the largest step between two samples."""


def only(script: Script, kind: str) -> dict:
    [event] = [event for event in script.events if event["type"] == kind]
    return event


def test_the_questions_are_those_of_the_example():
    names = sorted(path.name for path in (PAGE / "questions").iterdir())
    assert names == ["color.wav", "opposite.wav", "sum.wav"]
    assert all((PAGE / "questions" / name).read_bytes() == (QUESTIONS / name).read_bytes() for name in names)


def test_it_listens_answers_and_is_interrupted(browser):
    """Speak hands-free, over the answer a second time; the second answer is heard to its end."""
    with visit(browser, Script(seconds=2.5, pause=0.05)) as here:
        here.wait('#connection[data-state="open"]')
        here.page.check("input[value=free]")
        here.page.click("#talk")
        here.wait('[data-status="interrupted"]')
        here.wait('[data-status="done"]')
        assert here.page.locator("#talk[aria-pressed=true]").count() == 1
        here.page.click("#talk")
        cut = only(here.script, "conversation.item.truncate")["audio_end_ms"]
        assert 200 < cut < 2500
        counts = here.counts()
        heard = 1000 * (counts["played"] / RATE - 2.5)  # ms of the first answer
        assert cut <= heard < cut + 400  # the rest was on its way to the loudspeaker
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
        assert here.counts()["received"] == here.counts()["played"] == 4 * RATE // 5
        here.write("and <b>three</b>")
        here.wait_for_turns(2)
        here.page.click("text=What color is the sky?")
        here.wait_for_turns(3)
        assert here.counts()["received"] == here.counts()["played"] == 3 * 4 * RATE // 5
        assert here.texts(".question .text") == ["What color is the sky?", "and <b>three</b>", "A spoken question"]
        assert here.script.types()[:4] == [
            "session.update", "input_audio_buffer.clear", "input_audio_buffer.commit", "response.create"
        ]
        assert only(here.script, "conversation.item.create")["item"]["content"][0]["text"] == "and <b>three</b>"
        here.page.click("#turns li:nth-of-type(1) .answer .recording button")
        here.wait("#turns li:nth-of-type(1) .answer .recording button.plays")
        check_modules(here.page)


def check_modules(page) -> None:
    """Compare the page's modules with slow or other implementations, in the browser that is already there."""
    noise = np.random.default_rng(5).uniform(-0.3, 0.3, 4410).astype(np.float32)
    for rate in (16000, 44100, 48000):
        whole, pieces = page.evaluate(RESAMPLED, [noise.tolist(), rate])
        assert whole == pieces
        expected = soxr.resample(lowpassed(noise, rate), rate, RATE)
        got = np.array(page.evaluate(RESAMPLED, [lowpassed(noise, rate).tolist(), rate])[0])
        middle = slice(200, len(got) - 200)
        assert np.abs(got[middle] - expected[: len(got)][middle]).max() < 1e-3, rate
    events = page.evaluate(BUFFERED)
    assert events["before"] == 0  # too few samples are queued
    assert events["step"] < 0.01  # a fade takes 144 samples
    assert (events["underruns"], events["afterUnderrun"], events["resumed"]) == (1, 0, 128)
    assert events["ended"] and 0 < events["stopped"] <= 144


def lowpassed(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return the part of samples [n] that both resamplers pass unchanged."""
    spectrum = np.fft.rfft(samples)
    spectrum[np.fft.rfftfreq(len(samples), 1 / rate) > 0.35 * min(rate, RATE)] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


@pytest.mark.long
def test_escape_stops_an_answer(browser):
    """Interrupt a typed question's answer, which is here as a whole long before it has been heard."""
    with visit(browser, Script(seconds=4, pause=0)) as here:
        here.write("tell me more")
        here.wait("#turns .latency:not([hidden])")
        time.sleep(1)
        here.page.press("#text", "Escape")
        here.wait_for_turns(1, "interrupted")
        played = here.counts()["played"]
        cut = only(here.script, "conversation.item.truncate")["audio_end_ms"]
        assert 200 < cut <= 1000 * played / RATE < cut + 400
        time.sleep(0.3)
        assert here.counts()["played"] == played < here.counts()["received"]
        assert "response.cancel" not in here.script.types()  # the server had ended it
        assert here.texts(".state") == [f"interrupted after {cut / 1000:.2f} s, the rest is forgotten"]
        here.write("and more")
        here.wait("#stop:enabled")
        here.page.click("#stop")
        here.wait_for_turns(2, "interrupted")


@pytest.mark.long
def test_an_answer_that_comes_too_slowly_is_played_whole(browser):
    with visit(browser, Script(seconds=1.6, pause=0.3)) as here:
        here.write("slowly please")
        here.wait_for_turns(1)
        counts = here.counts()
        assert counts["received"] == counts["played"] == 1.6 * RATE and counts["underruns"] >= 1


@pytest.mark.long
def test_a_token_is_asked_for_and_kept_for_the_session(browser):
    with visit(browser, Script(token="s3cret")) as here:
        assert here.problem() == "The server wants a token."
        here.page.fill("#token", "wrong")
        here.page.press("#token", "Enter")
        here.page.locator("#problem p", has_text="does not accept this token").wait_for()
        here.page.fill("#token", "not a token (at all)")
        here.page.press("#token", "Enter")
        here.page.locator("#problem p", has_text="cannot send the signs").wait_for()
        here.page.fill("#token", "s3cret")
        here.page.press("#token", "Enter")
        here.wait('#connection[data-state="open"]')
        assert not here.page.locator("#token-form").is_visible() and not here.page.locator("#problem").is_visible()
        here.page.reload()
        here.wait('#connection[data-state="open"]')


@pytest.mark.long
def test_it_connects_again(browser):
    with visit(browser, Script(seconds=5, pause=0)) as here:
        here.write("hello")
        here.wait("#turns .latency:not([hidden])")
        time.sleep(1)  # all of the answer has come
        here.script.close(1012, "the server restarts")
        assert here.problem() == "the server restarts"
        here.wait('#connection[data-state="open"]')
        assert len(here.script.sockets) == 2
        here.wait_for_turns(1)  # its answer had arrived and is played on
        assert here.page.locator("#turns .divider").count() == 1
        here.script.close(1000, "The session was closed: no event for 300 seconds.")
        assert here.problem() == "The session was closed: no event for 300 seconds."
        time.sleep(1.5)
        assert here.page.locator('#connection[data-state="closed"]').count() == 1  # not by itself
        here.page.click("#reconnect")
        here.wait('#connection[data-state="open"]')
        here.script.close(1000, "")
        here.wait('#connection[data-state="closed"]')
        here.write("hello again")  # a question connects
        here.wait_for_turns(2)
        here.page.click("#anew")
        here.wait('#connection[data-state="open"]')
        assert here.page.locator("#turns > li").count() == 0 and len(here.script.sockets) == 5


@pytest.mark.long
def test_a_full_server_is_tried_again(browser):
    with visit(browser, Script(full=True)) as here:
        assert here.problem() == FULL
        here.script.full = False
        here.wait('#connection[data-state="open"]')
        assert not here.page.locator("#problem").is_visible()


@pytest.mark.long
def test_models_transcripts_and_files(browser, tmp_path):
    with visit(browser, Script(models=("tone", "other"), seconds=0.5)) as here:
        here.page.check("#transcribes")
        here.page.set_input_files("#file", QUESTIONS / "day.wav")
        here.wait_for_turns(1)
        assert here.texts(".question .text") == ["what was said"]
        (tmp_path / "no.wav").write_bytes(b"RIFF nonsense")
        here.page.set_input_files("#file", tmp_path / "no.wav")
        assert here.problem() == "no.wav is not a sound file that this browser can read."
        here.page.click("#dismiss")
        soundfile.write(tmp_path / "long.flac", np.zeros(121 * 8000), 8000)
        here.page.set_input_files("#file", tmp_path / "long.flac")
        assert here.problem() == "long.flac is longer than 120 seconds."
        here.page.select_option("#model", "other")
        here.page.locator("#turns .divider").wait_for()
        here.wait('#connection[data-state="open"]')
        assert here.script.sockets[-1].socket.query_params["model"] == "other"
        appended = [event for event in here.script.events if event["type"] == "input_audio_buffer.append"]
        wav, rate = soundfile.read(QUESTIONS / "day.wav")
        sent = sum(len(base64.b64decode(event["audio"])) for event in appended) / 2 / RATE
        assert sent == pytest.approx(len(wav) / rate, abs=0.001)


@pytest.mark.long
def test_a_tap_too_short_is_no_question(browser):
    with visit(browser, Script()) as here:
        here.wait('#connection[data-state="open"]')
        here.page.evaluate(TAP)
        assert here.problem().startswith("That was too short")
        assert here.page.locator("#turns > li").count() == 0
        assert "response.create" not in here.script.types()


@pytest.mark.long
def test_a_screen_reader_clicks_to_begin_and_to_end(browser):
    with visit(browser, Script(seconds=0.5)) as here:
        here.wait('#connection[data-state="open"]')
        here.page.evaluate("document.getElementById('talk').click()")
        here.wait("#talk.live")
        time.sleep(1.5)
        here.page.evaluate("document.getElementById('talk').click()")
        here.wait_for_turns(1)
        assert here.texts("#spoken-text") == [here.answers()[0]]


@pytest.mark.long
def test_without_a_microphone_it_says_why(launch):
    """Check a refused permission, and a page that is not served securely; questions can be written all the same."""
    options = ["--use-fake-device-for-media-stream", "--no-sandbox", "--deny-permission-prompts"]
    with launch([*options, "--host-resolver-rules=MAP far.test 127.0.0.1"]) as browser:
        with visit(browser, Script(seconds=0.5)) as here:
            here.wait('#connection[data-state="open"]')
            here.page.keyboard.down("Space")
            assert here.problem().startswith("The browser does not let this page use the microphone.")
            here.page.keyboard.up("Space")
            here.write("hello")
            here.wait_for_turns(1)
        with visit(browser, Script(seconds=0.5), host="far.test") as here:
            assert "https or localhost" in here.problem()
            here.wait('#connection[data-state="open"]')
            assert "https or localhost" in here.problem()
            here.write("hello")
            here.wait_for_turns(1)
            assert here.answers() == ["this is the"] and here.texts(".answer .length") == ["0.5 s"]


@pytest.mark.long
def test_it_fits_narrow_screens_and_reaches_every_control_by_tab(browser):
    with visit(browser, Script(seconds=0.5, models=("tone", "another-system-of-a-long-name"))) as here:
        here.write("w" * 300)
        here.wait_for_turns(1)
        here.page.set_viewport_size({"width": 320, "height": 640})
        assert here.page.evaluate("document.documentElement.scrollWidth") == 320
        here.page.evaluate("document.activeElement.blur()")
        reached = set()
        for _ in range(40):
            here.page.keyboard.press("Tab")
            reached.add(here.page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        assert {"model", "talk", "text", "file", "transcribes", "anew", "Save", "What color is the sky?"} <= reached


ASKING = """() => {
  const media = navigator.mediaDevices, open = media.getUserMedia.bind(media);
  const allowed = new Promise((resolve) => (window.allow = resolve));
  media.getUserMedia = async (options) => {
    window.asked = true;
    await allowed;
    window.stream = await open(options);
    return window.stream;
  };
}"""
"""Script after which the browser asks for the microphone until the function `allow` is called."""


def test_the_microphone_is_released_if_the_mode_changes_while_the_browser_asks_for_it(browser):
    with visit(browser, Script()) as here:
        here.wait('#connection[data-state="open"]')
        here.page.evaluate(ASKING)
        here.page.check("input[value=free]")
        here.page.click("#talk")
        wait_for(lambda: here.page.evaluate("window.asked"), 5)
        here.page.check("input[value=push]")
        here.page.evaluate("allow()")
        released = "window.stream?.getTracks().every((track) => track.readyState === 'ended')"
        wait_for(lambda: here.page.evaluate(released), 5)


@pytest.mark.long
def test_the_shipped_system_is_talked_to(launch, server):
    """Speak to the real server hands-free, ask a follow-up that needs the turn before, and speak over its answer."""
    with launch(microphone(QUESTIONS / "opposite.wav")) as browser, opened(browser, server().url) as here:
        here.wait('#connection[data-state="open"]')
        here.page.check("#transcribes")
        here.page.check("input[value=free]")
        here.page.click("#talk")
        here.wait_for_turns(1, seconds=30)
        here.page.click("#talk")
        assert here.answers()[0].startswith("the opposite of")  # the browser changes the sound, and so may the word
        assert here.texts(".question .text")[0].startswith("what is the opposite of")
        assert here.counts()["received"] == here.counts()["played"] > RATE
        [latency] = here.texts("#turns .latency")
        assert float(latency.split()[-2]) > 0.5  # with the pause that ends a turn
        here.write("and of up")
        here.page.locator("#turns li:first-child .latency:not([hidden])").wait_for()
        here.page.click("#talk")  # the recording begins anew
        here.wait_for_turns(1, "interrupted")
        assert here.answers()[1].startswith("the opposite of up")  # it may be cut
        assert re.match(r"interrupted after \d", here.texts("[data-status=interrupted] .state")[0])
        here.wait_for_turns(2, seconds=30)
        here.page.click("#talk")
        assert not here.page.locator("#problem").is_visible()


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    """The script of axe-core, which checks a page for barriers, from the npm registry."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on PATH")
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "axe-core@4"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        pytest.skip(f"axe-core is not to be had: {done.stderr.strip()[-200:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1180])
def test_axe_finds_no_barrier(browser, axe, scheme, width):
    with visit(browser, Script(seconds=1, pause=0.05), color_scheme=scheme, bypass_csp=True) as here:
        here.page.set_viewport_size({"width": width, "height": 800})
        here.page.evaluate(axe)
        found = barriers(here.page)
        here.page.click("text=What is two plus four?")
        here.wait('[data-status="answering"] .answer .text:not([hidden])')
        found += barriers(here.page)
        here.wait_for_turns(1)
        here.script.close(1000, "The session was closed: no event for 300 seconds.")
        here.problem()
        here.page.check("input[value=free]")
        found += barriers(here.page)
        assert found == []


def barriers(page) -> list[str]:
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [f"{one['id']} ({one['impact']}): {node['html'][:120]}" for one in found for node in one["nodes"]]
