"""Test the Realtime WebSocket: what is sent in which order, errors that leave the session alive, and clean ends."""

from __future__ import annotations

import asyncio
import json
import threading

import numpy as np
import pytest

from omnikit.serve.realtime import outbox as outboxes
from omnikit.serve.realtime.actions import RATE, Close, Detection, SpeechContinues, SpeechStarted
from omnikit.serve.realtime.listener import Listener
from omnikit.serve.realtime.outbox import AUDIO, Outbox, Overflow

PATH = "/v1/realtime"


def speech_of(response_id: str, delta: str = "AAAA") -> dict:
    return {"type": AUDIO, "response_id": response_id, "delta": delta}


# the outbox


def taken(outbox: Outbox) -> list:
    """Take everything up to the end of a closed outbox."""

    async def take() -> list:
        found = []
        while isinstance(text := await asyncio.wait_for(outbox.take(), 1), str):
            found.append(json.loads(text))
        return [*found, text]

    return asyncio.run(take())


def test_events_are_sent_in_order_up_to_the_close():
    outbox = Outbox()
    outbox.put({"type": "one", "text": "\ud800é"})
    outbox.put(speech_of("a"))
    outbox.close(close := Close(1000, "over"))
    outbox.put({"type": "late"})
    outbox.close(Close(1001, "again"))
    assert taken(outbox) == [{"type": "one", "text": "\ud800é"}, speech_of("a"), close]


def test_speech_of_a_silenced_answer_is_dropped_and_nothing_else():
    outbox = Outbox()
    kept = [{"type": "response.output_audio_transcript.delta", "response_id": "a"}, speech_of("b")]
    for event in (speech_of("a"), *kept, speech_of("a")):
        outbox.put(event)
    outbox.silence("a")
    outbox.put(speech_of("a"))
    outbox.put(done := {"type": "response.done"})
    outbox.close(close := Close(1000, "over"))
    assert taken(outbox) == [*kept, done, close]


def test_an_outbox_is_bounded(monkeypatch):
    monkeypatch.setattr(outboxes, "MOST_BYTES", 1000)
    outbox = Outbox()
    outbox.put(speech_of("a", "A" * 800))
    with pytest.raises(Overflow):
        outbox.put({"type": "more", "text": "A" * 200})
    outbox.silence("a")
    outbox.put({"type": "more", "text": "A" * 200})  # there is room again
    outbox.close(close := Close(1000, ""))
    assert taken(outbox) == [{"type": "more", "text": "A" * 200}, close]


def test_taking_waits_for_an_event():
    async def wait() -> None:
        outbox = Outbox()
        waiting = asyncio.create_task(outbox.take())
        await asyncio.sleep(0)
        outbox.put({"type": "one"})
        assert await asyncio.wait_for(waiting, 1) == '{"type":"one"}'
        waiting = asyncio.create_task(outbox.take())
        await asyncio.sleep(0)
        outbox.close(close := Close(1000, ""))
        assert await asyncio.wait_for(waiting, 1) is close

    asyncio.run(wait())


# the turn detector in its thread


class Counting:
    """A detector that reports how many samples it has heard."""

    def __init__(self, detection: Detection):
        self.detection, self.heard, self.threads = detection, 0, set()

    def push(self, samples: np.ndarray) -> list:
        self.threads.add(threading.get_ident())
        self.heard += len(samples)
        return [SpeechContinues(self.heard), SpeechStarted(self.detection.prefix_ms)]

    def change(self, detection: Detection) -> None:
        self.detection = detection

    def pause_idle(self) -> None:
        self.heard += 1_000_000

    def start_idle(self) -> None:
        self.heard += 2_000_000


def heard_by(feed) -> tuple[list, list[Counting]]:
    """Return the reports of a listener that `feed` was called with, and the detectors that it made."""
    reports, made = [], []

    async def listen() -> None:
        listener = Listener(reports.append, lambda detection: made.append(Counting(detection)) or made[-1])
        running = asyncio.create_task(listener.run())
        feed(listener)
        await listener.caught_up()
        running.cancel()

    asyncio.run(listen())
    return reports, made


def test_audio_is_heard_in_order_and_outside_of_the_event_loop():
    def feed(listener: Listener) -> None:
        listener.listen(np.zeros(50))  # nobody listens
        listener.detect(Detection(prefix_ms=1))
        listener.listen(np.zeros(100))
        listener.listen(np.zeros(20))
        listener.detect(Detection(prefix_ms=2))  # goes on where it is
        listener.listen(np.zeros(7))
        listener.detect(None)
        listener.listen(np.zeros(9))
        listener.detect(Detection(prefix_ms=3))
        listener.listen(np.zeros(8))

    reports, made = heard_by(feed)
    assert reports[::2] == [SpeechContinues(100), SpeechContinues(120), SpeechContinues(127), SpeechContinues(8)]
    assert reports[1::2] == [SpeechStarted(1), SpeechStarted(1), SpeechStarted(2), SpeechStarted(3)]
    assert len(made) == 2
    assert all(detector.threads and threading.get_ident() not in detector.threads for detector in made)


def test_long_audio_is_heard_in_slices_so_that_others_have_their_turn():
    def feed(listener: Listener) -> None:
        listener.detect(Detection())
        listener.listen(np.zeros(RATE * 5 // 2))

    reports, _ = heard_by(feed)
    assert [report.speech_ms for report in reports[::2]] == [RATE, 2 * RATE, RATE * 5 // 2]


def test_idle_is_paused_and_started_in_order():
    def feed(listener: Listener) -> None:
        listener.pause_idle()
        listener.detect(Detection())
        listener.listen(np.zeros(1))
        listener.pause_idle()
        listener.listen(np.zeros(1))
        listener.start_idle()
        listener.listen(np.zeros(1))

    reports, _ = heard_by(feed)
    assert [report.speech_ms for report in reports[::2]] == [1, 1_000_002, 3_000_003]
