import time
from dataclasses import dataclass

import pytest
import torch

from omnikit.api import Chunk
from omnikit.evaluate.speed import Timing, measure, speed_table, time_answer


@dataclass
class SlowOmni:
    """A stand-in for a system that streams a word at once and then two chunks of sound, `wait` seconds apart."""

    wait: float = 0.05
    samples: int = 1600
    sample_rate: int = 16000
    threads_seen: int = 0

    def stream(self, wav):
        self.threads_seen = torch.get_num_threads()
        yield Chunk("yes", torch.zeros(0))
        for _ in range(2):
            time.sleep(self.wait)
            yield Chunk("", torch.zeros(self.samples))


def test_timing_of_one_answer():
    timing = time_answer(SlowOmni().stream, torch.zeros(10), 16000)
    assert timing.audio == pytest.approx(0.2)
    assert timing.first_audio - timing.first_text >= 0.05  # each chunk of sound comes `wait` after the chunk before
    assert timing.wall - timing.first_audio >= 0.05


def test_real_time_factor_is_wall_over_audio_and_threads_are_put_back():
    before, omni = torch.get_num_threads(), SlowOmni()
    speed = measure(omni.stream, [torch.zeros(10)] * 2, sample_rate=16000, threads=2)
    assert omni.threads_seen == 2 and torch.get_num_threads() == before
    assert speed.questions == 2 and speed.audio_seconds == pytest.approx(0.4)
    assert 0.5 <= speed.real_time_factor < 1.5  # 0.1 s for 0.2 s of sound; the bound leaves room for a busy machine
    assert "| way | 2 | 2 |" in speed_table({"way": speed})


def test_the_middle_and_the_slow_end_are_those_of_the_answers(monkeypatch):
    waits = iter([9.0, *(i / 100 for i in range(1, 101))])  # the first answer is for warming up

    def timed(stream, asked, sample_rate):
        first = next(waits)
        return Timing(wall=2 * first, audio=4.0, first_audio=first, first_text=first / 2)

    monkeypatch.setattr("omnikit.evaluate.speed.time_answer", timed)
    speed = measure(None, [None] * 100, sample_rate=1, threads=1)
    assert (speed.median_first_audio, speed.p95_first_audio) == pytest.approx((0.505, 0.9505))
    assert (speed.median_first_text, speed.p95_first_text) == pytest.approx((0.2525, 0.47525))
    assert (speed.median_real_time_factor, speed.p95_real_time_factor) == pytest.approx((0.2525, 0.47525))
    assert speed.as_dict()["p95_first_audio"] == 0.9505
    assert "| 0.25 / 0.48 | 0.25 / 0.48 | 0.51 / 0.95 |" in speed_table({"way": speed})


def test_answers_without_sound_have_no_speed():
    silent = SlowOmni(wait=0, samples=0)
    assert time_answer(silent.stream, torch.zeros(10), 16000) is None
    assert measure(silent.stream, [torch.zeros(10)], sample_rate=16000, threads=1) is None
    assert speed_table({"way": None}) == "No answer had sound."
