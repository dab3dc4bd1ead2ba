"""How fast spoken answers come, one question at a time, as a user asks them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch import Tensor

from omnikit.api import Omni
from omnikit.evaluate.tables import markdown_table, seconds


@dataclass(frozen=True)
class Speed:
    """Measured on this machine with the given number of threads."""

    questions: int
    threads: int
    real_time_factor: float  # wall time over seconds of answer audio, of all questions together
    median_real_time_factor: float
    median_first_audio: float  # seconds from the question to the first sound
    median_first_text: float
    audio_seconds: float  # of all answers

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {key: round(value, 4) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Timing:
    """Of one answer, all in seconds."""

    wall: float
    audio: float
    first_audio: float
    first_text: float


def time_answer(omni: Omni, wav: Tensor) -> Timing | None:
    """Streams one answer; None where no sound came."""
    began = time.perf_counter()
    samples, first_audio, first_text = 0, None, None
    for chunk in omni.stream(wav):
        now = time.perf_counter() - began
        if chunk.text and first_text is None:
            first_text = now
        if chunk.wav.numel() and first_audio is None:
            first_audio = now
        samples += chunk.wav.numel()
    wall = time.perf_counter() - began
    if first_audio is None:
        return None
    return Timing(wall, samples / omni.sample_rate, first_audio, wall if first_text is None else first_text)


def measure(omni: Omni, wavs: Sequence[Tensor], threads: int) -> Speed | None:
    """Answers the questions one by one, after one that is not counted; None where no answer had sound."""
    with _threads(threads):
        time_answer(omni, wavs[0])
        timings = [timing for wav in wavs if (timing := time_answer(omni, wav)) is not None]
    if not timings:
        return None
    return Speed(
        questions=len(timings),
        threads=threads,
        real_time_factor=sum(t.wall for t in timings) / sum(t.audio for t in timings),
        median_real_time_factor=median(t.wall / t.audio for t in timings),
        median_first_audio=median(t.first_audio for t in timings),
        median_first_text=median(t.first_text for t in timings),
        audio_seconds=sum(t.audio for t in timings),
    )


def speed_table(measured: dict[str, Speed | None]) -> str:
    """Markdown of way -> speed."""
    header = ["Spoken answers", "Questions", "Threads", "Real-time factor", "First text, s", "First sound, s"]
    rows = [
        [way, str(s.questions), str(s.threads), seconds(s.real_time_factor), seconds(s.median_first_text),
         seconds(s.median_first_audio)]
        for way, s in measured.items() if s is not None
    ]  # fmt: skip
    return markdown_table(header, rows) if rows else "No answer had sound."


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
