"""One object that turns questions into answers: model, engine, strategy and how to decode."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from threading import Event, Lock
from typing import TypedDict, Unpack

from omnikit.engines.torch import TorchEngine
from omnikit.generate.request import Request
from omnikit.generate.runner import Runner
from omnikit.generate.running_batch import CAPACITY, RunningBatch
from omnikit.generate.types import Answer, BadQuestion, Decoding, Question
from omnikit.interfaces import Engine
from omnikit.model import OmniLM
from omnikit.option_ranges import COUNT
from omnikit.strategies import PARALLEL, Strategy
from omnikit.tasks import Task


class RequestOptions(TypedDict, total=False):
    """Options of one request, see `Request`; what is not given is the decoder's."""

    decoding: Decoding
    strategy: Strategy
    seed: int | None
    sound: str | None
    cancel: Event | None
    name: str | None


class Decoder:
    """Answers questions with a model: a batch by hand, or from any thread in a batch that is always running.

    Args:
        model: in evaluation mode.
        engine: computes; None = torch, with the model's own modules.
        strategy: sequences per question.
        decoding: sampling and limits of each answer.
        capacity: sequences that are decoded together at most.
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
        self._runner: Runner | None = None
        self._lock = Lock()

    def of_capacity(self, questions: int) -> Decoder:
        """Return a decoder like this one that decodes so many questions together."""
        capacity = questions * len(self.strategy.text_only)
        return Decoder(self.model, self.engine, strategy=self.strategy, decoding=self.decoding, capacity=capacity)

    def request(self, task: Task, question: Question, **asked: Unpack[RequestOptions]) -> Request:
        """Return a request that has not been submitted yet."""
        options = {"decoding": self.decoding, "strategy": self.strategy, **asked}
        return Request(self.model, task, question, **options)

    def batch(self, capacity: int | None = None) -> RunningBatch:
        """Return an empty batch to be stepped by hand."""
        return RunningBatch(self.model, self.engine, capacity=capacity or self.capacity)

    def answers(self, task: Task, questions: Sequence[Question], **asked: Unpack[RequestOptions]) -> list[Answer]:
        """Decode whole answers in a batch of their own, in this thread.

        Raises:
            ValueError: one of the questions cannot be asked.
        """
        requests = [self.request(task, question, **asked) for question in questions]
        self.run(requests)
        return [request.wait(0) for request in requests]

    def outcomes(
        self, task: Task, questions: Sequence[Question], batch: RunningBatch | None = None
    ) -> list[Answer | BadQuestion]:
        """Decode whole answers as `answers` does; a question that cannot be asked gives the reason in place of one.

        Args:
            batch: see `run`.
        """
        requests = [self.request(task, question) for question in questions]
        self.run(requests, batch)
        return [_outcome(request) for request in requests]

    def run(self, requests: Sequence[Request], batch: RunningBatch | None = None) -> None:
        """Decode requests to their ends in this thread. What goes wrong with one of them is raised by its `wait`.

        Args:
            batch: an empty one, whose slots are used again; None = a new one.
        """
        batch, waiting = batch or self.batch(), deque(requests)
        while waiting or batch.busy:
            while waiting and len(batch.waiting) < batch.capacity:
                batch.submit(waiting.popleft())
            batch.turn()

    def submit(self, task: Task, question: Question, **asked: Unpack[RequestOptions]) -> Request:
        """Submit a question from any thread; its answer grows in the batch that all threads share.

        Raises:
            QueueFull: too many questions wait.
        """
        request = self.request(task, question, **asked)
        with self._lock:  # nobody closes the runner in between
            if self._runner is None:
                self._runner = Runner(self.batch())
            return self._runner.submit(request)

    def close(self) -> None:
        """End all answers of the shared batch as cancelled; the next question begins a new one."""
        with self._lock:
            runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()


def _outcome(request: Request) -> Answer | BadQuestion:
    try:
        return request.wait(0)
    except BadQuestion as error:
        return error
