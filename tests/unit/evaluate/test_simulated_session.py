"""Tests of Realtime sessions on simulated time, with scripted answers and the real turn detection."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from omnikit.audio.io import load_audio
from omnikit.evaluate.simulated_session import SimulatedDialog, SimulatedSession, TimedAnswer, TimedChunk
from omnikit.serve.realtime.actions import RATE, Crop, SpokenQuestion, StartAnswer
from tests.repository import ROOT

TONE = 0.25 * np.sin(np.arange(RATE) * 0.1, dtype=np.float32) + 0.01
"""A second of an answer, no sample of which is 0 for long."""


class Scripted:
    """An `Answering` with scripted answers: seconds at which each chunk comes and how long it is."""

    sample_rate = RATE

    def __init__(self, *answers: Sequence[tuple[float, float]]):
        self.left = list(answers)
        self.questions: list[SpokenQuestion] = []
        self.edits = []

    def answer(self, question: StartAnswer) -> TimedAnswer:
        self.questions.append(question.question)
        chunks = []
        for second, length in self.left.pop(0):
            chunks.append(TimedChunk(second, "word ", np.resize(TONE, round(length * RATE))))
        return TimedAnswer(tuple(chunks), "end")

    def edit(self, edit) -> None:
        self.edits.append(edit)


@pytest.fixture(scope="module")
def question() -> np.ndarray:
    samples = load_audio(ROOT / "egs" / "mini" / "questions" / "capital.wav", RATE).numpy()
    audible = np.flatnonzero(np.abs(samples) > 0.02)
    return samples[audible[0] : audible[-1] + 1]


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def run(answering: Scripted, *parts: np.ndarray, **options) -> SimulatedDialog:
    return SimulatedSession(answering, **options).run(np.concatenate(parts))


def audible(dialog: SimulatedDialog) -> tuple[float, float]:
    """Return the seconds of the first and the last sample that is not silent."""
    found = np.flatnonzero(np.abs(dialog.output.astype(float)) > 50)
    return found[0] / RATE, (found[-1] + 1) / RATE


def test_an_answer_is_played_after_the_pause_that_ends_a_turn(question):
    answering = Scripted([(0.0, 0.5), (0.0, 0.3)])
    dialog = run(answering, question, silence(3))
    end, asked = len(question) / RATE, dialog.answers[0].asked
    assert end + 0.4 < asked < end + 0.65
    assert audible(dialog) == (pytest.approx(asked, abs=0.01), pytest.approx(asked + 0.8, abs=0.01))
    assert len(dialog.output) == len(question) + 3 * RATE
    assert (len(dialog.answers[0].stretches), dialog.answers[0].stopped, dialog.problems) == (1, None, [])
    heard = answering.questions[0].samples
    assert len(heard) / RATE == pytest.approx(end + 0.5, abs=0.1)  # the question with the pause that ended it
    slow = run(Scripted([(0.0, 0.5), (0.0, 0.3)]), question, silence(3), turn_detection={"silence_duration_ms": 1000})
    assert slow.answers[0].asked == pytest.approx(asked + 0.5, abs=0.05)


def test_chunks_are_played_when_they_have_been_generated(question):
    dialog = run(Scripted([(0.2, 0.5), (1.0, 0.5)]), question, silence(3))
    asked = dialog.answers[0].asked
    first, second = dialog.answers[0].stretches  # the second chunk came 0.3 s after the first had been played
    assert (first.begin, first.length) == (pytest.approx(asked + 0.2), pytest.approx(0.5, abs=1e-3))
    assert (second.begin, second.source) == (pytest.approx(asked + 1.0), pytest.approx(0.5, abs=1e-3))
    gap = dialog.output[round((first.begin + 0.52) * RATE) : round((second.begin - 0.02) * RATE)]
    assert len(gap) and not gap.any()


def test_speech_cuts_an_answer_to_what_was_played(question):
    answering = Scripted([(0.0, 5.0)], [(0.0, 0.5)])
    pause = 1.2
    dialog = run(answering, question, silence(pause), question, silence(2))
    first, second = dialog.answers
    began = len(question) / RATE + pause
    assert began + 0.35 < first.stopped < began + 0.6  # 400 ms of speech are an interruption
    played = sum(part.length for part in first.stretches)
    assert played == pytest.approx(first.stopped - first.asked, abs=1e-3)
    quiet = dialog.output[round(first.stopped * RATE) : round(second.asked * RATE)]
    assert len(quiet) > RATE and not quiet.any()
    (crop,) = answering.edits
    assert isinstance(crop, Crop) and crop.seconds == pytest.approx(played, abs=2e-3)
    assert second.stopped is None


def test_an_answer_that_is_being_generated_is_cancelled(question):
    answering = Scripted([(0.0, 0.4), (0.4, 0.4), (2.5, 3.0)], [(0.0, 0.5)])
    dialog = run(answering, question, silence(1.1), question, silence(3))
    first, second = dialog.answers
    assert sum(part.length for part in first.stretches) == pytest.approx(0.8, abs=1e-3)  # the last one came too late
    assert [edit.seconds for edit in answering.edits] == [pytest.approx(0.8)]
    assert second.stretches and first.stopped < second.asked
    played = [audio for audio in (first, second) for audio in audio.stretches]
    assert all(before.begin + before.length <= after.begin for before, after in pairwise(played))


def test_short_speech_does_not_stop_an_answer(question):
    dialog = run(Scripted([(0.0, 3.0)]), question, silence(1.2), question[: RATE // 5], silence(3))
    (answer,) = dialog.answers
    assert answer.stopped is None
    assert sum(part.length for part in answer.stretches) == pytest.approx(3.0, abs=1e-3)


def test_an_answer_is_heard_until_the_recording_ends(question):
    dialog = run(Scripted([(0.0, 60.0)]), question, silence(1))
    assert len(dialog.output) == len(question) + RATE
    assert audible(dialog)[1] == pytest.approx(len(dialog.output) / RATE, abs=0.01)


def test_a_question_that_is_refused_is_a_problem(question):
    class Refusing(Scripted):
        def answer(self, question: StartAnswer) -> TimedAnswer:
            raise ValueError("too long")

    dialog = run(Refusing(), question, silence(1))
    assert (dialog.problems, dialog.answers, dialog.output.any()) == (["too long"], [], False)


@pytest.mark.parametrize("settings", [{"threshold": 7}, {"type": "magic"}, {"silence": 3}])
def test_settings_that_the_session_refuses_or_ignores_are_one_line(settings):
    with pytest.raises(ValueError, match="--turn_detection") as error:
        SimulatedSession(Scripted(), turn_detection=settings)
    assert "\n" not in str(error.value)
