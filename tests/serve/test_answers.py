"""Tests of the answers of a Realtime session, with a system that computes nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from omnikit.generate import Chunk, Decoding, QueueFull, TokenCounts
from omnikit.serve import bridge
from omnikit.serve.metrics import Metrics
from omnikit.serve.realtime.actions import Remember, StartAnswer, WrittenQuestion
from omnikit.serve.realtime.answers import MOST_EDITS, RunningAnswers


class Asked:
    """A request that has ended."""

    features, counts = None, TokenCounts(0, 0, 0, 0, 0, 0)

    def __init__(self, end: str, sounds: Sequence[int] = (0,)):
        """Answer with chunks of these numbers of samples, and an empty one."""
        self.chunks = [*(Chunk("four", torch.full((n,), float(n))) for n in sounds), Chunk("", torch.zeros(0), end)]

    def subscribe(self, callback) -> None:
        callback()

    def next_chunk(self) -> Chunk | None:
        return self.chunks.pop(0) if self.chunks else None

    def cancel(self) -> None:
        pass


class Omni:
    """A system and its conversation, which note what they are asked."""

    sample_rate, decoding = 24000, Decoding(max_steps=100)

    def __init__(self, end: str = "end", error: Exception | None = None, sounds: Sequence[int] = (0,)):
        self.end, self.error, self.sounds = end, error, sounds
        self.steps: list[int | None] = []

    def conversation(self) -> SimpleNamespace:
        return SimpleNamespace(submit=self.submit, remember=self.remember)

    def written_question(self, text: str) -> str:
        return text

    def submit(self, *_, max_steps: int | None, **__) -> Asked:
        if self.error is not None:
            raise self.error
        self.steps.append(max_steps)
        return Asked(self.end, self.sounds)

    def remember(self, key: str, question: str, answer: str) -> None:
        raise ValueError(f"text {question!r}: the tokenizer lacks it")


class Reports:
    """Reports of the chunks and the ends of answers to a session, in their order."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.chunks: list[tuple[str, list[float]]] = []

    def chunk(self, response_id: str, text: str, samples: np.ndarray) -> None:
        self.chunks.append((text, samples.tolist()))

    def answered(self, response_id: str, end: str, usage: object) -> None:
        self.ends.append(end)

    def failed(self, response_id: str, message: str, code: str) -> None:
        self.ends.append(code)


def answer(
    omni: Omni, *actions: StartAnswer | Remember, reports: Reports | None = None
) -> tuple[list[str], Metrics]:
    """Carry out some actions to their ends, and return the ends of the answers and the metrics."""
    metrics, reports = Metrics(), Reports() if reports is None else reports

    async def run() -> None:
        answers = RunningAnswers(omni, metrics, reports, seconds=1.0)
        for action in actions:
            answers.start(action) if isinstance(action, StartAnswer) else answers.edit(action)
        while answers._tasks:
            await asyncio.gather(*answers._tasks)
        await answers.close()

    asyncio.run(asyncio.wait_for(run(), 10))
    return reports.ends, metrics


def count(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Return a figure of the metrics."""
    return metrics.registry.get_sample_value(f"omnikit_{name}_total", labels)


@pytest.mark.parametrize("remembered", [True, False])
def test_a_client_cannot_ask_for_more_steps_than_the_server_allows(remembered):
    omni = Omni()
    for asked in (None, 20, 4096):
        answer(omni, StartAnswer("resp", WrittenQuestion("hi"), remembered=remembered, max_steps=asked))
    assert omni.steps == [100, 20, 100]


def test_questions_do_not_wait_for_files_of_rest_requests():
    over = threading.Event()
    try:
        for _ in range(bridge.THREADS + 1):
            bridge.FILES.submit(over.wait, 60)
        assert answer(Omni(), StartAnswer("resp", WrittenQuestion("hi")))[0] == ["end"]
    finally:
        over.set()


@pytest.mark.parametrize("end", ["end", "cancelled", "step limit"])
def test_answers_are_counted_by_their_ends(end):
    ends, metrics = answer(Omni(end), StartAnswer("resp", WrittenQuestion("hi")))
    assert ends == [end]
    assert count(metrics, "answers", kind="realtime", end=end) == 1


@pytest.mark.parametrize(
    ("sounds", "expected"),
    [
        ((0, 1, 0, 2, 3, 0, 4), [[], [], [], [1, 2, 2], [3] * 3, [], [4] * 4]),
        ((1,), [[], [1]]),
        ((1, 2), [[], [1, 2, 2]]),
    ],
)
def test_the_first_chunk_of_sound_is_sent_with_the_second(sounds, expected):
    """The text is not held back, and an answer with a single chunk of sound ends with it."""
    reports = Reports()
    answer(Omni(sounds=sounds), StartAnswer("resp", WrittenQuestion("hi")), reports=reports)
    assert [samples for _, samples in reports.chunks] == expected
    assert [text for text, _ in reports.chunks][: len(sounds)] == ["four"] * len(sounds)


def test_a_question_for_which_the_queue_has_no_room_is_counted_as_refused():
    full = Omni(error=QueueFull("64 questions are waiting already"))
    ends, metrics = answer(full, StartAnswer("resp", WrittenQuestion("hi")))
    assert ends == ["server_busy"]
    assert count(metrics, "refusals", reason="queue") == 1
    assert count(metrics, "errors", kind="realtime", error="QueueFull") is None
    assert count(metrics, "answers", kind="realtime", end="error") is None


def test_edits_do_not_pile_up():
    async def run() -> int:
        answers, most = RunningAnswers(Omni(), Metrics(), Reports(), seconds=1.0), 0
        for number in range(3 * MOST_EDITS):
            answers.edit(Remember(str(number), "hi", "hello"))
            most = max(most, len(answers._edits))
            await answers.caught_up()
        await answers.close()
        return most

    assert asyncio.run(run()) == MOST_EDITS + 1


def test_the_log_has_no_words_of_a_turn_that_the_system_cannot_take(caplog):
    answer(Omni(), Remember("resp", "my doctor says", "get well"))
    assert "ValueError" in caplog.text
    assert "doctor" not in caplog.text
