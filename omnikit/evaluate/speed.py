"""Measure real-time factor and latency of generated speech, one question or text at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from omnikit.api import Chunk
from omnikit.evaluate.result_tables import markdown_table, seconds


@dataclass(frozen=True)
class Speed:
    """A record of the real-time factors and latencies of answers, measured on one machine; p95 is the 95th
    percentile."""

    questions: int  # number of questions or texts that were answered with sound
    threads: int  # number of CPU threads
    real_time_factor: float  # wall time divided by the length of the generated speech, over all answers
    median_real_time_factor: float
    p95_real_time_factor: float
    median_first_audio: float  # first-sound latency in seconds
    p95_first_audio: float
    median_first_text: float  # first-text latency in seconds
    p95_first_text: float
    audio_seconds: float  # length of the generated speech of all answers

    def as_dict(self) -> dict[str, float]:
        """Return real-time factors and latencies as a dictionary for JSON, rounded to four decimals."""
        return {key: round(value, 4) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Timing:
    """Timing of one answer in seconds."""

    wall: float  # from the question to the end of the answer
    audio: float  # length of the generated speech
    first_audio: float  # first-sound latency
    first_text: float  # first-text latency; `wall` if the answer has no text


def time_answer(stream: Callable[[Any], Iterator[Chunk]], asked: Any, sample_rate: int) -> Timing | None:
    """Measure the timing of one streamed answer; None if it has no sound.

    Args:
        stream: function from a question or text to the chunks of its answer.
        asked: question or text.
        sample_rate: sample rate of the chunks in Hz.
    """
    began = time.perf_counter()
    samples, first_audio, first_text = 0, None, None
    for chunk in stream(asked):
        now = time.perf_counter() - began
        if chunk.text and first_text is None:
            first_text = now
        if chunk.wav.numel() and first_audio is None:
            first_audio = now
        samples += chunk.wav.numel()
    wall = time.perf_counter() - began
    if first_audio is None:
        return None
    return Timing(wall, samples / sample_rate, first_audio, wall if first_text is None else first_text)


def measure(
    stream: Callable[[Any], Iterator[Chunk]], asked: Sequence[Any], *, sample_rate: int, threads: int
) -> Speed | None:
    """Measure the speed of answering questions one by one, after one for warming up; None if no answer has sound.

    Args:
        stream: `Omni.stream` or `Omni.stream_speech`.
        asked: questions or texts, the arguments of `stream`.
        sample_rate: sample rate of the chunks in Hz.
        threads: number of CPU threads of torch during the measurement.
    """
    with _threads(threads):
        time_answer(stream, asked[0], sample_rate)
        found = [time_answer(stream, each, sample_rate) for each in asked]
    timings = [timing for timing in found if timing is not None]
    if not timings:
        return None
    return Speed(
        questions=len(timings),
        threads=threads,
        real_time_factor=sum(t.wall for t in timings) / sum(t.audio for t in timings),
        **_spread("real_time_factor", [t.wall / t.audio for t in timings]),
        **_spread("first_audio", [t.first_audio for t in timings]),
        **_spread("first_text", [t.first_text for t in timings]),
        audio_seconds=sum(t.audio for t in timings),
    )


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    middle, high = np.percentile(values, (50, 95))
    return {f"median_{name}": float(middle), f"p95_{name}": float(high)}


def speed_table(measured: dict[str, Speed | None]) -> str:
    """Return measured speeds as a Markdown table with a line for each way of answering."""
    header = ["Speech", "Given", "Threads", "Real-time factor", "p50 / p95", "First text, s, p50 / p95"]
    header += ["First sound, s, p50 / p95"]
    rows = [
        [way, str(s.questions), str(s.threads), seconds(s.real_time_factor),
         _pair(s.median_real_time_factor, s.p95_real_time_factor), _pair(s.median_first_text, s.p95_first_text),
         _pair(s.median_first_audio, s.p95_first_audio)]
        for way, s in measured.items() if s is not None
    ]  # fmt: skip
    return markdown_table(header, rows) if rows else "No answer had sound."


def _pair(middle: float, high: float) -> str:
    return f"{seconds(middle)} / {seconds(high)}"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
