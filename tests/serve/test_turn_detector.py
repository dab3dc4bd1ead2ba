"""Tests of the detection of turns."""

from __future__ import annotations

import itertools
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnikit.audio.io import load_audio
from omnikit.serve.audio_formats import InputAudio, OutputAudio
from omnikit.serve.realtime import voice_activity
from omnikit.serve.realtime.actions import (
    RATE,
    Detection,
    Heard,
    Idle,
    SpeechContinues,
    SpeechStarted,
    SpeechStopped,
)
from omnikit.serve.realtime.turn_detector import WINDOW_MS, TurnDetector
from omnikit.serve.realtime.voice_activity import Hearing, VoiceActivity
from tests.repository import ROOT

QUESTIONS = sorted((ROOT / "egs" / "mini" / "questions").glob("*.wav"))


class Script:
    """A stand-in for the network that knows the probabilities of all windows beforehand, and 0 after them."""

    def __init__(self, *probabilities: float):
        self.left = list(probabilities)

    def probability(self, window: np.ndarray, hearing: Hearing) -> float:
        """Return the next probability."""
        return self.left.pop(0) if self.left else 0.0


def silence(seconds: float) -> np.ndarray:
    """Return samples [n] of silence."""
    return np.zeros(int(RATE * seconds), np.float32)


def question(path: Path) -> np.ndarray:
    """Return a recorded question [n] without the silence before and after it."""
    samples = load_audio(path, RATE).numpy()
    loud = np.nonzero(np.abs(samples) > 0.03 * np.abs(samples).max())[0]
    return samples[loud[0] : loud[-1] + 1]


def noisy(samples: np.ndarray, decibels: float = 20) -> np.ndarray:
    """Return samples with white noise at a ratio of speech to noise."""
    loud = samples[np.abs(samples) > 0]
    noise = np.random.default_rng(0).standard_normal(len(samples))
    return (samples + np.sqrt(np.mean(loud**2)) * 10 ** (-decibels / 20) * noise).astype(np.float32)


def by_telephone(samples: np.ndarray) -> np.ndarray:
    """Return samples as they arrive through a telephone."""
    output = OutputAudio("audio/pcmu", RATE)
    return InputAudio("audio/pcmu").push(output.push(samples) + output.finish())


def borders(reports: list[Heard]) -> list[Heard]:
    """Return the reports without those that a turn goes on."""
    return [report for report in reports if not isinstance(report, SpeechContinues)]


def script(*probabilities: float, windows: int = 0, **detection: float) -> list[Heard]:
    """Return the reports for windows with these probabilities, and at least `windows` in all."""
    detector = TurnDetector(Detection(**detection), Script(*probabilities))
    return detector.push(silence(0.01 + max(windows, len(probabilities)) * WINDOW_MS / 1000))


@pytest.mark.parametrize(("silence_ms", "end_ms"), [(100.0, 260.0), (300.0, 460.0)])
def test_a_turn_ends_by_settings_that_come_in_its_last_pause(silence_ms, end_ms):
    """The pause so far counts, so that the turn ends although nobody speaks again."""
    detector = TurnDetector(Detection(silence_ms=500), Script(*[0.9] * 5))
    assert borders(detector.push(silence(0.01 + 10 * WINDOW_MS / 1000))) == [SpeechStarted(0.0, WINDOW_MS)]
    detector.change(Detection(silence_ms=silence_ms))
    assert borders(detector.push(silence(0.5))) == [SpeechStopped(end_ms, 5 * WINDOW_MS)]


# the network


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_network_computes_what_the_package_computes():
    folder = Path(find_spec("silero_vad").submodule_search_locations[0]) / "data"
    theirs = torch.jit.load(folder / "silero_vad.jit").eval()
    names = {f"encoder.{index}.reparam_conv": f"conv{index + 1}" for index in range(4)}
    names |= {"stft": "stft_conv", "decoder.rnn": "lstm_cell", "decoder.decoder.2": "final_conv"}
    weights = {}
    for name, value in theirs._model.state_dict().items():
        part, _, kind = name.rpartition(".")
        weights[f"{names[part]}.{kind.replace('forward_basis_buffer', 'weight')}"] = value.numpy()
    ours, hearing = VoiceActivity(weights), Hearing()
    samples = noisy(np.concatenate([load_audio(QUESTIONS[0], 16000).numpy(), np.zeros(8000, np.float32)]), 30)
    probabilities = []
    for at in range(0, len(samples) - 511, 512):
        window = samples[at : at + 512]
        with torch.no_grad():
            expected = theirs(torch.from_numpy(window)[None], 16000).item()
        probabilities.append(ours.probability(window, hearing))
        assert probabilities[-1] == pytest.approx(expected, abs=1e-3)
    assert min(probabilities) < 0.1
    assert max(probabilities) > 0.9


def test_the_network_keeps_streams_apart():
    vad = voice_activity.shipped()
    assert vad is voice_activity.shipped()
    sounds = [silence(0.2), question(QUESTIONS[0]), silence(0.7)], [silence(0.5), question(QUESTIONS[1]), silence(0.6)]
    sounds = [np.concatenate(parts) for parts in sounds]
    alone = [TurnDetector(Detection()).push(samples) for samples in sounds]
    detectors, together = [TurnDetector(Detection(), vad) for _ in sounds], [[], []]
    for at in range(0, max(map(len, sounds)), 480):
        for reports, detector, samples in zip(together, detectors, sounds, strict=True):
            reports += detector.push(samples[at : at + 480])
    assert together == alone


def test_detection_starts_without_torch_and_does_not_warn():
    code = (
        "import sys; from omnikit.serve.realtime.turn_detector import Detection, TurnDetector\n"
        "TurnDetector(Detection()); assert not {'torch', 'silero_vad'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("found", [None, "an empty folder"])
def test_missing_weights_are_an_error_that_says_how_to_get_them(found, monkeypatch, tmp_path):
    package = None if found is None else type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(voice_activity, "find_spec", lambda name: package)
    voice_activity.shipped.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"silero[-_]vad.*(not installed|6\.2\.1 or later)") as error:
            TurnDetector(Detection())
    finally:
        voice_activity.shipped.cache_clear()
    assert "\n" not in str(error.value)


# recordings


@pytest.mark.parametrize("heard", [lambda samples: samples, noisy, by_telephone], ids=["clean", "noise", "telephone"])
@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_a_question_is_one_turn_with_its_borders(path, heard):
    speech = question(path)
    reports = TurnDetector(Detection()).push(heard(np.concatenate([silence(1), speech, silence(1)])))
    started, stopped = borders(reports)
    end_ms = 1000 + 1000 * len(speech) / RATE
    assert 700 - 64 <= started.start_ms <= 700 + 64
    assert end_ms + 500 - 64 <= stopped.end_ms <= end_ms + 500 + 160
    assert stopped.speech_ms >= 0.6 * (end_ms - 1000)
    assert reports[0] == started
    assert reports[-1] == stopped


@pytest.mark.parametrize(("silence_ms", "decibels", "turns"), [(500, 20, 1), (200, 60, 6)])
def test_a_pause_of_400_ms_ends_a_turn_only_if_it_is_long_enough(silence_ms, decibels, turns):
    parts = [part for path in QUESTIONS for part in (question(path), silence(0.4))]
    samples = noisy(np.concatenate([silence(1), *parts, silence(0.6)]), decibels)
    reports = borders(TurnDetector(Detection(silence_ms=silence_ms)).push(samples))
    assert [type(report) for report in reports] == [SpeechStarted, SpeechStopped] * turns


@pytest.mark.parametrize("kind", ["silence", "noise", "tone", "clicks", "hum"])
def test_sounds_that_are_no_speech_start_no_turn(kind):
    time = np.arange(2 * RATE) / RATE
    sounds = {
        "silence": 0 * time,
        "noise": 0.05 * np.random.default_rng(0).standard_normal(len(time)),
        "tone": 0.3 * np.sin(2 * np.pi * 440 * time),
        "clicks": np.where(time % 0.5 < 0.001, 0.8, 0.0),
        "hum": 0.2 * np.sign(np.sin(2 * np.pi * 50 * time)),
    }
    assert TurnDetector(Detection()).push(sounds[kind].astype(np.float32)) == []


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(100, 5000), min_size=1, max_size=6))
def test_reports_do_not_depend_on_the_division_of_the_audio(sizes):
    samples = np.concatenate([silence(0.1), question(QUESTIONS[1])[: RATE // 2], silence(0.3)])
    rules = Detection(silence_ms=200)
    at_once, detector, reports, at = TurnDetector(rules).push(samples), TurnDetector(rules), [], 0
    for size in itertools.cycle(sizes):
        if at >= len(samples):
            break
        reports += detector.push(samples[at : at + size])
        at += size
    assert reports == at_once
    assert len(borders(reports)) == 2


def test_a_turn_is_reported_as_soon_as_its_window_is_whole():
    samples = np.concatenate([silence(1), question(QUESTIONS[0]), silence(1)])
    detector, fed_ms, late = TurnDetector(Detection()), 0.0, []
    for at in range(0, len(samples), 240):
        fed_ms += 10
        for report in detector.push(samples[at : at + 240]):
            if isinstance(report, SpeechStopped):
                late.append(fed_ms - report.end_ms)
    assert len(late) == 1
    assert late[0] <= WINDOW_MS + 12


# the rules, with probabilities written down


def test_a_turn_begins_before_its_first_window_and_ends_after_the_pause():
    reports = script(*[0.1] * 20, *[0.9] * 5, *[0.0] * 9, prefix_ms=300, silence_ms=256)
    assert reports[0] == SpeechStarted(20 * 32 - 300, 32)
    assert reports[-1] == SpeechStopped(25 * 32 + 256, 5 * 32)
    assert [report.speech_ms for report in reports[1:-1]] == [64, 96, 128, 160] + 7 * [160]


def test_a_turn_never_begins_before_the_audio():
    assert script(0.9)[0] == SpeechStarted(0, 32)


def test_a_turn_never_begins_before_the_end_of_the_turn_before():
    reports = borders(script(0.9, 0.0, 0.0, 0.0, 0.9, 0.0, 0.0, prefix_ms=300, silence_ms=64))
    assert reports == [SpeechStarted(0, 32), SpeechStopped(96, 32), SpeechStarted(96, 32), SpeechStopped(224, 32)]


def test_a_pause_is_counted_in_full_windows_but_ends_at_its_length():
    reports = borders(script(0.9, windows=30, silence_ms=500))
    assert reports == [SpeechStarted(0, 32), SpeechStopped(32 + 500, 32)]
    assert borders(script(0.9, windows=16, silence_ms=500)) == [SpeechStarted(0, 32)]


def test_doubtful_windows_neither_begin_nor_end_a_turn():
    assert script(0.4, 0.49, 0.4) == []
    assert len(borders(script(0.9, *[0.4] * 50, silence_ms=64))) == 1
    assert len(borders(script(0.9, 0.3, *[0.4] * 50, silence_ms=64))) == 2  # a pause that goes on
    assert len(borders(script(0.9, 0.3, 0.6, 0.3, 0.6, silence_ms=64))) == 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.3, 0.4, 0.5, 0.9]), max_size=40),
    st.sampled_from([0, 32, 100, 500]),
    st.sampled_from([0, 100, 300]),
)
def test_reports_have_an_order_and_times_that_grow(probabilities, silence_ms, prefix_ms):
    reports = script(*probabilities, silence_ms=silence_ms, prefix_ms=prefix_ms)
    turns = borders(reports)
    assert [type(report) for report in turns] == ([SpeechStarted, SpeechStopped] * len(turns))[: len(turns)]
    times = [report.start_ms if isinstance(report, SpeechStarted) else report.end_ms for report in turns]
    assert times == sorted(times)
    assert all(0 <= time <= len(probabilities) * 32 for time in times)
    loud = sum(probability >= 0.5 for probability in probabilities)
    assert bool(turns) == bool(loud)
    assert len(reports) >= loud  # each window of a turn is reported: the next at most 32 ms after the last
    spoken = sum(report.speech_ms for report in turns if isinstance(report, SpeechStopped))
    assert spoken <= 32 * sum(probability >= 0.35 for probability in probabilities)


def test_nothing_said_is_reported_once_after_an_answer():
    detector = TurnDetector(Detection(idle_ms=1000), Script())
    assert detector.push(silence(3)) == []
    detector.start_idle()
    assert detector.push(silence(0.9)) == []
    (report,) = detector.push(silence(3))
    assert report == Idle(pytest.approx(4000, abs=32))
    detector.start_idle()
    assert len(detector.push(silence(1.1))) == 1


def test_an_answer_or_speech_ends_the_waiting():
    detector = TurnDetector(Detection(idle_ms=500), Script())
    detector.start_idle()
    detector.pause_idle()
    assert detector.push(silence(2)) == []
    detector = TurnDetector(Detection(idle_ms=500, silence_ms=64), Script(0.0, 0.9))
    detector.start_idle()
    assert [type(report) for report in borders(detector.push(silence(2)))] == [SpeechStarted, SpeechStopped]


def test_waiting_does_not_begin_while_somebody_speaks_or_without_a_limit():
    detector = TurnDetector(Detection(idle_ms=100), Script(*[0.9] * 40))
    detector.push(silence(0.5))
    detector.start_idle()
    assert not any(isinstance(report, Idle) for report in detector.push(silence(3)))
    detector = TurnDetector(Detection(), Script())
    detector.start_idle()
    assert detector.push(silence(3)) == []


def test_nothing_fed_is_nothing_heard():
    assert TurnDetector(Detection()).push(np.zeros(0, np.float32)) == []
