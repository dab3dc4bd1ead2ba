import time
from dataclasses import dataclass

import pytest
import torch

from omnikit.api import Chunk
from omnikit.evaluate.speed import measure, speed_table, time_answer


@dataclass
class SlowOmni:
    """Says a word at once, sound after `wait` seconds and again after as long."""

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
    timing = time_answer(SlowOmni(), torch.zeros(10))
    assert timing.audio == pytest.approx(0.2)
    assert timing.first_audio - timing.first_text >= 0.05  # each sound comes a pause after what was before it
    assert timing.wall - timing.first_audio >= 0.05


def test_real_time_factor_is_wall_over_audio_and_threads_are_put_back():
    before, omni = torch.get_num_threads(), SlowOmni()
    speed = measure(omni, [torch.zeros(10)] * 2, threads=2)
    assert omni.threads_seen == 2 and torch.get_num_threads() == before
    assert speed.questions == 2 and speed.audio_seconds == pytest.approx(0.4)
    assert 0.5 <= speed.real_time_factor < 1.5  # 0.1 s for 0.2 s of sound, and a busy machine's delays
    assert "| way | 2 | 2 |" in speed_table({"way": speed})


def test_answers_without_sound_have_no_speed():
    silent = SlowOmni(wait=0, samples=0)
    assert time_answer(silent, torch.zeros(10)) is None
    assert measure(silent, [torch.zeros(10)], threads=1) is None
    assert speed_table({"way": None}) == "No answer had sound."
