"""Test the benchmark of start-up times, which compares pairs of processes and reports whether the limit is met."""

from __future__ import annotations

import pytest

from benchmarks import startup


def test_the_ratio_is_that_of_pairs(capsys):
    """The reported ratio of start-up times is the median over pairs, so that a disturbed pair has little weight."""
    assert startup.ratio([(1.0, 1.5), (10.0, 17.0), (1.0, 1.6)]) == 1.6
    assert startup.report_goals({"a": 1.69, "b": 0.2}) == 0
    assert startup.report_goals({"a": 0.3, "b": 1.71}) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "b: 1.71 x import torch (goal 1.7 at most, missed)"


def test_processes_take_turns(monkeypatch):
    started = []
    monkeypatch.setattr(startup, "run", lambda arguments: float(started.append(arguments) or len(started)))
    assert startup.time_pairs(("-c", "x"), 2) == [(3.0, 4.0), (5.0, 6.0)]  # the first pair is a warm-up
    assert started == [startup.TORCH, ("-c", "x")] * 3


def test_a_process_that_fails_says_why():
    assert startup.run(("-c", "import omnikit")) > 0
    with pytest.raises(ValueError, match=r"python -c import nothing_of_that_name: ModuleNotFoundError"):
        startup.run(("-c", "import nothing_of_that_name"))
