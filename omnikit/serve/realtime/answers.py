"""The answers of one Realtime session: its questions are submitted in order, and chunks are reported as they come."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import aclosing, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from omnikit.generate import Question, QueueFull, Request
from omnikit.serve import bridge
from omnikit.serve.metrics import Metrics
from omnikit.serve.realtime.actions import Crop, Forget, Remember, SpokenQuestion, StartAnswer, Transcribe, Usage
from omnikit.serve.realtime.session_conversation import SessionConversation

if TYPE_CHECKING:
    from omnikit.api import Omni

_logger = logging.getLogger(__name__)
BUSY, INVALID, BROKEN = CODES = ("server_busy", "invalid_value", "server_error")
"""Codes of errors that answers end with: too many questions wait, a bad question, an error of the server."""

MOST_EDITS = 64
"""Number of edits of a conversation that may wait before a session takes further events of its client."""


BEGINS_WITH = 2
"""Number of chunks of sound that are sent together at the beginning of an answer.

One chunk alone is often over before the next one is there, when another question is encoded in between.
"""


class Reports(Protocol):
    """A receiver of the chunks and ends of answers and transcriptions, called in the event loop."""

    def chunk(self, response_id: str, text: str, samples: np.ndarray) -> None:
        """Handle a chunk of an answer."""

    def answered(self, response_id: str, end: str, usage: Usage) -> None:
        """Handle the end of an answer."""

    def failed(self, response_id: str, message: str, code: str) -> None:
        """Handle the error that ended an answer; `code` is one of `CODES`."""

    def transcribed(self, item_id: str, text: str) -> None:
        """Handle the transcript of a spoken question."""

    def not_transcribed(self, item_id: str, message: str) -> None:
        """Handle the error for which a spoken question has no transcript."""


class _Running:
    """An answer from its start to its end."""

    def __init__(self) -> None:
        self.cancel = threading.Event()
        self.request: Request | None = None
        self.encoded = asyncio.Event()  # set at the first chunk or the end, too


class _Beginning:
    """Holds back the sound of the first chunks of an answer until there are `BEGINS_WITH`, or the answer ends."""

    def __init__(self) -> None:
        self._held: list[np.ndarray] | None = []

    def released(self, samples: np.ndarray, ends: bool) -> np.ndarray:
        """Return the samples [n] to send now, given those of the next chunk and whether it is the last one."""
        if self._held is None:
            return samples
        if len(samples):
            self._held.append(samples)
        if len(self._held) < BEGINS_WITH and not ends:
            return samples[:0]
        held, self._held = self._held, None
        return np.concatenate([samples[:0], *held])


class RunningAnswers:
    """The answers of one session and the conversation that they continue; used in one event loop.

    Questions and edits of the conversation take effect in the order of the calls. None of them blocks the loop.

    Args:
        omni: system that answers.
        metrics: metrics in which answers are counted.
        reports: receiver of chunks, ends and errors.
        seconds: maximum number of seconds spent on one answer.

    Raises:
        ValueError: the system's engine cannot hold a conversation.
    """

    def __init__(self, omni: Omni, metrics: Metrics, reports: Reports, *, seconds: float):
        self._omni, self._metrics, self._reports, self._seconds = omni, metrics, reports, seconds
        self._conversation = SessionConversation(omni, seconds=seconds)
        self._running: dict[str, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._edits: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Lock()  # wakes its waiters in the order in which they came

    @property
    def running(self) -> bool:
        """Whether any answer has not ended."""
        return bool(self._running)

    def __contains__(self, response_id: str) -> bool:
        """Whether an answer has begun and not ended."""
        return response_id in self._running

    def start(self, answer: StartAnswer) -> None:
        """Begin an answer, once the questions and edits before have been submitted."""
        self._running[answer.response_id] = _Running()
        self._spawn(self._answer(answer))

    def cancel(self, response_id: str) -> None:
        """End a running answer before its next decode step."""
        self._running[response_id].cancel.set()

    def edit(self, edit: Crop | Forget | Remember) -> None:
        """Change the conversation after the questions and edits before."""
        task = self._spawn(self._edit(edit))
        self._edits.add(task)
        task.add_done_callback(self._edits.discard)

    async def caught_up(self) -> None:
        """Wait until at most `MOST_EDITS` edits of the conversation wait, so that a client cannot queue any number."""
        while len(self._edits) > MOST_EDITS:
            await asyncio.wait(self._edits, return_when=asyncio.FIRST_COMPLETED)

    def transcribe(self, action: Transcribe) -> None:
        """Begin to transcribe a spoken question."""
        self._spawn(self._transcribe(action))

    async def close(self) -> None:
        """Cancel everything, and wait until nothing of it uses the event loop."""
        for running in self._running.values():
            running.cancel.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._conversation.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, answer: StartAnswer) -> None:
        """Submit a question, and report its answer to the end or the error that ends it."""
        key, running = answer.response_id, self._running[answer.response_id]
        try:
            with self._metrics.answer("realtime") as measured:
                request = running.request = await self._submit(answer, running.cancel)
                end = measured.end = await self._follow(key, running, measured.chunk)
        except Exception as error:
            running.encoded.set()
            del self._running[key]
            self._reports.failed(key, *self._explained(error))
        else:
            del self._running[key]
            self._reports.answered(key, end, _usage(request))

    async def _submit(self, answer: StartAnswer, cancel: threading.Event) -> Request:
        async with self._turns if answer.remembered else nullcontext():
            return await bridge.in_thread(self._conversation.submit, answer, cancel, pool=bridge.QUESTIONS)

    async def _follow(self, key: str, running: _Running, measure: Callable[[int, int], None]) -> str:
        """Report the chunks of an answer, and return the reason why it ended."""
        rate, end, beginning = self._omni.sample_rate, "", _Beginning()
        async with aclosing(bridge.chunks(running.request)) as chunks:
            async for chunk in chunks:
                running.encoded.set()
                samples = beginning.released(chunk.wav.numpy(), ends=chunk.end is not None)
                if len(samples):
                    measure(len(samples), rate)
                if len(samples) or chunk.text:
                    self._reports.chunk(key, chunk.text, samples)
                end = chunk.end
        return end

    async def _edit(self, edit: Crop | Forget | Remember) -> None:
        async with self._turns:
            await bridge.in_thread(self._conversation.edit, edit, pool=bridge.QUESTIONS)

    async def _transcribe(self, action: Transcribe) -> None:
        try:
            request = await self._submit_transcription(action)
            async with aclosing(bridge.chunks(request)) as chunks:
                text = "".join([chunk.text async for chunk in chunks])
        except Exception as error:
            self._reports.not_transcribed(action.item_id, self._explained(error)[0])
        else:
            self._reports.transcribed(action.item_id, text)

    async def _submit_transcription(self, action: Transcribe) -> Request:
        """Submit a spoken question to be transcribed, with the features of its answer if it is being answered."""
        features = None
        if (running := self._running.get(action.response_id)) is not None:
            await running.encoded.wait()
            features = running.request.features if running.request is not None else None
        if features is not None:
            question = Question(features=features)
        else:
            spoken = SpokenQuestion(action.samples)
            question = await bridge.in_thread(self._conversation.question, spoken, pool=bridge.QUESTIONS)
        return self._omni.submit("A1T1", question, low_priority=True, time_limit=self._seconds)

    def _explained(self, error: Exception) -> tuple[str, str]:
        """Return a message and a code of `CODES` for an error that ended an answer.

        A full queue is counted as a refusal, and an error of the server is logged.
        """
        if isinstance(error, QueueFull):
            self._metrics.refused("queue")
            return "The server is busy; ask again later.", BUSY
        if isinstance(error, ValueError):
            return str(error), INVALID
        _logger.error("Realtime answer failed", exc_info=error)
        return "The server had an error while answering.", BROKEN


def _usage(request: Request) -> Usage:
    """Return the token usage of an answer that has ended."""
    counts = request.counts
    return Usage(
        input_text=counts.history + counts.prompt - counts.spoken, input_audio=counts.spoken,
        cached=counts.cached, output_text=counts.text, output_audio=counts.frames,
    )  # fmt: skip
