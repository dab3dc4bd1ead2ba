"""Test the figures: times as a listener notices them, and counters of what ended how."""

from __future__ import annotations

import asyncio

import pytest
import torch
from prometheus_client import generate_latest

from omnikit.serve.metrics import KINDS, Meter, Metrics


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def measured(*chunks: tuple[float, int]) -> Meter:
    """Return the meter of an answer whose chunks came at some seconds with some numbers of samples, at 10 Hz."""
    clock = Clock()
    meter = Meter(clock)
    for seconds, samples in chunks:
        clock.now = 100.0 + seconds
        meter.chunk(torch.zeros(samples), 10)
    return meter


def test_an_answer_in_time_has_no_gaps():
    meter = measured((0.5, 0), (1.0, 10), (1.5, 10), (2.9, 10), (4.0, 1))
    assert (meter.first_audio, meter.took, meter.gaps) == (1.0, 4.0, [])
    assert meter.seconds == pytest.approx(3.1)


def test_late_chunks_are_gaps_for_who_plays_from_the_first_on():
    """After a gap, playing goes on later: the next chunk is late only if it comes after the end of this one."""
    meter = measured((1.0, 10), (2.5, 10), (3.4, 10), (5.0, 10), (5.503, 0), (5.504, 1))
    assert meter.gaps == pytest.approx([0.5, 0.5])
    assert measured((1.0, 10), (2.004, 10)).gaps == []  # as little as a sound device bridges


def test_samples_may_be_a_number():
    clock = Clock()
    meter = Meter(clock)
    meter.chunk(5, 10)
    assert meter.seconds == 0.5


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"omnikit_{name}", labels)


def test_ends_and_errors_are_counted():
    metrics = Metrics()
    with metrics.answer("chat") as meter:
        assert value(metrics, "running_answers", kind="chat") == 1
        meter.chunk(8000, 16000)
        meter.end = "step limit"
    with pytest.raises(KeyError), metrics.answer("chat"):
        raise KeyError("secret text of a user")
    with pytest.raises(asyncio.CancelledError), metrics.answer("speech"):
        raise asyncio.CancelledError
    metrics.refused("queue")
    assert value(metrics, "running_answers", kind="chat") == 0
    assert value(metrics, "answers_total", kind="chat", end="step limit") == 1
    assert value(metrics, "answers_total", kind="chat", end="error") == 1
    assert value(metrics, "answers_total", kind="speech", end="cancelled") == 1
    assert value(metrics, "errors_total", kind="chat", error="KeyError") == 1
    assert value(metrics, "refusals_total", reason="queue") == 1
    assert value(metrics, "first_audio_seconds_count", kind="chat") == 1
    assert value(metrics, "real_time_factor_sum", kind="chat") < 1
    assert value(metrics, "speech_seconds_total", kind="chat") == 0.5
    assert value(metrics, "underruns_total", kind="chat") == 0
    assert b"secret" not in generate_latest(metrics.registry)


def test_a_process_may_have_several_servers(serving, omni):
    first, second = serving(), serving()
    with first.admit_session("a"):
        assert value(first.metrics, "sessions") == 1
        assert value(second.metrics, "sessions") == 0
    assert value(first.metrics, "sessions") == 0


def test_queue_and_slots_are_those_of_the_running_batch(serving, omni):
    metrics = serving().metrics
    assert value(metrics, "slots", model="mini") == omni.decoder.capacity
    seen = []
    request = omni.submit("T1A2", omni.written_question("what is two plus two"), sound="exact")
    request.subscribe(lambda: seen.append(value(metrics, "slots_in_use", model="mini")))
    request.wait()
    assert max(seen) == 1
    assert value(metrics, "queue", model="mini") == 0
    assert {"realtime", "chat", "speech", "transcription", "chat_published"} == set(KINDS)
