"""One object that answers questions: model, engine, decoding strategy and decoding options together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from threading import Event, Lock
from typing import TypedDict, Unpack

from omnikit.engines.torch import TorchEngine
from omnikit.generate.history import History, Turn
from omnikit.generate.request import Request
from omnikit.generate.runner import Runner
from omnikit.generate.running_batch import CAPACITY, MOST_WAITING, RunningBatch
from omnikit.generate.types import Answer, BadQuestion, Decoding, Question
from omnikit.interfaces import Engine
from omnikit.model import OmniLM
from omnikit.option_ranges import COUNT
from omnikit.strategies import PARALLEL, Strategy
from omnikit.tasks import Task


class RequestOptions(TypedDict, total=False):
    """Keyword options of one request, see `Request`; the decoder's defaults replace missing ones."""

    decoding: Decoding
    strategy: Strategy
    seed: int | None
    sound: str | None
    cancel: Event | None
    name: str | None
    history: History | None
    turn: Turn | None
    low_priority: bool


class Decoder:
    """A decoder that answers questions with a model, in a batch stepped by its caller or in one shared by all threads.

    Args:
        model: the model, in evaluation mode.
        engine: engine that computes hidden states and logits; None = `TorchEngine`.
        strategy: decoding strategy, which says how many sequences answer a question.
        decoding: sampling options and limits of each answer.
        capacity: maximum number of sequences that are decoded together.
    """

    def __init__(
        self,
        model: OmniLM,
        engine: Engine | None = None,
        *,
        strategy: Strategy = PARALLEL,
        decoding: Decoding | None = None,
        capacity: int = CAPACITY,
    ):
        self.model, self.engine = model, engine or TorchEngine(model)
        self.strategy, self.decoding = strategy, decoding or Decoding()
        COUNT.check("capacity", capacity)
        self.capacity = max(capacity, len(strategy.text_only))
        self.most_waiting = MOST_WAITING
        """Maximum number of questions that wait for slots of a running batch that is opened from now on."""
        self.wait_seconds: float | None = None
        """Maximum number of seconds for which a question waits for a slot of such a batch; None = any time."""
        self._runner: Runner | None = None
        self._lock = Lock()

    def with_capacity(self, questions: int) -> Decoder:
        """Return a decoder with the same options and room for `questions` answers at a time."""
        capacity = questions * len(self.strategy.text_only)
        return Decoder(self.model, self.engine, strategy=self.strategy, decoding=self.decoding, capacity=capacity)

    def request(self, task: Task, question: Question, **asked: Unpack[RequestOptions]) -> Request:
        """Return a new request for a question; it is not submitted."""
        options = {"decoding": self.decoding, "strategy": self.strategy, **asked}
        return Request(self.model, task, question, **options)

    def batch(self, capacity: int | None = None) -> RunningBatch:
        """Return an empty running batch, which the caller steps.

        Args:
            capacity: number of its slots; None = the decoder's capacity.
        """
        limits = {"most_waiting": self.most_waiting, "wait_seconds": self.wait_seconds}
        return RunningBatch(self.model, self.engine, capacity=capacity or self.capacity, **limits)

    def answers(self, task: Task, questions: Sequence[Question], **asked: Unpack[RequestOptions]) -> list[Answer]:
        """Return the whole answers to some questions, decoded in the calling thread in a running batch of their own.

        Raises:
            ValueError: one of the questions cannot be asked.
        """
        requests = [self.request(task, question, **asked) for question in questions]
        self.run(requests)
        return [request.wait(0) for request in requests]

    def outcomes(
        self, task: Task, questions: Sequence[Question], batch: RunningBatch | None = None
    ) -> list[Answer | BadQuestion]:
        """Return for each question its whole answer, or the error that says why it cannot be asked.

        Args:
            batch: see `run`.
        """
        requests = [self.request(task, question) for question in questions]
        self.run(requests, batch)
        return [_outcome(request) for request in requests]

    def run(self, requests: Sequence[Request], batch: RunningBatch | None = None) -> None:
        """Decode requests to their ends in the calling thread; the error of a failed request is raised by its `wait`.

        Args:
            batch: empty running batch to decode them in, whose slots are used again; None = a new one.
        """
        batch, waiting = batch or self.batch(), deque(requests)
        while waiting or batch.busy:
            while waiting and len(batch.waiting) < batch.capacity:
                batch.submit(waiting.popleft())
            batch.turn()

    def submit(self, task: Task, question: Question, **asked: Unpack[RequestOptions]) -> Request:
        """Submit a question to the running batch that all threads share, and return its request.

        Raises:
            QueueFull: the maximum number of questions is waiting.
        """
        request = self.request(task, question, **asked)
        with self._lock:  # another thread may close the runner
            if self._runner is None:
                self._runner = Runner(self.batch())
            return self._runner.submit(request)

    @property
    def load(self) -> tuple[int, int]:
        """Number of questions that wait for slots of the shared running batch, and number of its slots in use."""
        runner = self._runner
        return (0, 0) if runner is None else runner.load

    def close(self) -> None:
        """Cancel all requests of the shared running batch and stop its thread; the next question starts a new one."""
        with self._lock:
            runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()


def _outcome(request: Request) -> Answer | BadQuestion:
    try:
        return request.wait(0)
    except BadQuestion as error:
        return error
