"""Tests of the benchmark of live sessions: its measurements, its goals, and that it runs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import serve_load as load
from tests.repository import ROOT


def test_a_chunk_is_late_if_it_comes_after_the_sound_before_it():
    turn = load.LiveTurn()
    turn.take(24000, 10.0)
    turn.take(12000, 10.9)
    assert (turn.first, turn.sound, turn.late) == (10.0, 1.5, 0.0)
    turn.take(12000, 11.75)
    assert turn.late == pytest.approx(0.25)
    turn.done = True
    assert not turn.over(11.9)
    assert turn.over(12.1)


def sent(seconds: float) -> tuple[list, SimpleNamespace]:
    """Return a turn, and what a microphone remembers of it whose clock is a second ahead of its audio."""
    chunks, last = load.load_question(load.QUESTIONS[0])
    silence = [np.zeros(load.CHUNK, np.float32)] * 25
    chunks = [*silence, *chunks, *silence]
    times = [1 + (number + 1) * 0.04 for number in range(len(chunks))]
    turn = load.LiveTurn(ended=25 + last // load.CHUNK)
    turn.first = times[turn.ended] + seconds
    return [turn], SimpleNamespace(chunks=chunks, times=times)


def test_the_detectors_own_delay_is_no_delay_of_the_server():
    (times,) = load.measure_turns(*sent(0.9))
    assert times.first == pytest.approx(0.9)
    assert 0.5 <= times.detection <= 0.7
    assert times.beyond == pytest.approx(0.9 - times.detection)


def test_an_answer_that_was_not_heard_is_an_error():
    turns, microphone = sent(0.9)
    with pytest.raises(ValueError, match="2 questions were asked, 1 turns detected, 1 answers heard"):
        load.measure_turns([*turns, load.LiveTurn()], microphone)


@pytest.mark.parametrize(("first", "late", "status"), [(0.9, 0.0, 0), (1.0, 0.0, 1), (0.9, 0.01, 1)])
def test_a_goal_that_is_missed_is_told_and_is_the_exit_status(first, late, status, capsys):
    figures = {number: (10.0, [load.TurnTimes(first, 0.55, late, 1.5)] * number) for number in (1, 8)}
    assert load.report(figures) == status
    shown = capsys.readouterr().out
    assert "8 sessions: 8.00 x the answers of one after another" in shown
    assert shown.count(", missed") == status


def test_a_microphone_sends_in_real_time():
    messages = []

    async def note(text: str) -> None:
        messages.append(text)

    async def speak() -> list[float]:
        microphone = load.Microphone(SimpleNamespace(send=note))
        for _ in range(5):
            await microphone.send(np.full(load.CHUNK, 0.5, np.float32))
        return [sent - microphone.began for sent in microphone.times]

    times = asyncio.run(speak())
    assert len(messages) == 5
    assert all(sent >= 0.04 * (number + 1) for number, sent in enumerate(times))


@pytest.mark.long
def test_live_sessions_are_measured():
    command = [sys.executable, load.__file__, "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 1), done.stderr  # 1: a goal is missed, as on a busy machine
    assert "8 sessions: " in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1].startswith("latest chunk at 8: ")
