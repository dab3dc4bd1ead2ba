"""One question on its way: what is asked of the running batch, and the answer that grows."""

from __future__ import annotations

import traceback
from queue import SimpleQueue
from threading import Event
from time import monotonic
from types import TracebackType

import torch
from torch import Tensor

from omnikit.generate.detokenize import FrameReader, TextReader, read_answer
from omnikit.generate.types import (
    CANCELLED,
    STEP_LIMIT,
    TIME_LIMIT,
    Answer,
    BadQuestion,
    Chunk,
    Decoding,
    Question,
)
from omnikit.model import OmniLM
from omnikit.option_ranges import Range
from omnikit.strategies import Strategy
from omnikit.streaming import check_mode
from omnikit.tasks import Task

SEED = Range(0, 2**32 - 1, whole=True)
"""Numbers that are seeds: noise is a hash of 32 bits."""


class Request:
    """One question and its answer, which grows while a `RunningBatch` decodes it.

    Whoever asked may iterate over the chunks, `wait` for the whole and `cancel`, from any thread. All else belongs to
    the batch.

    Args:
        model: reads the tokens.
        seed: of the sampling noise, 0 to 2**32 - 1: the same question with the same seed has the same answer, whoever
            its neighbours are. None = drawn from torch's default generator, if anything is sampled.
        sound: mode of `omnikit.streaming.MODES` in which the codec decodes the answer while it grows; None = no sound.
        cancel: set by any thread to end the answer; None = only `Request.cancel` does.
        name: of the question, put before what is wrong with it.
    """

    def __init__(
        self,
        model: OmniLM,
        task: Task,
        question: Question,
        *,
        decoding: Decoding,
        strategy: Strategy,
        seed: int | None = None,
        sound: str | None = None,
        cancel: Event | None = None,
        name: str | None = None,
    ):
        if sound is not None:
            check_mode(sound)
        if cancel is not None and not isinstance(cancel, Event):
            raise TypeError(f"cancel: a threading.Event is wanted, not {type(cancel).__name__}")
        self.model, self.task, self.question = model, task, question
        self.decoding, self.strategy = decoding, strategy.for_task(task)
        self.seed = _seed(seed, decoding)
        self.max_steps = decoding.max_steps
        """Decode steps after which the answer is truncated; fewer where the backbone has no more positions."""
        self.steps: list[list[int]] = []
        """Emitted tokens, S for each decode step."""
        self.end: str | None = None
        """Why the answer ended, one of `ENDS`; None before, and where an error ended it."""
        self.error: BaseException | None = None
        self.slots: list[int] = []
        """Slots of the strategy's rows; empty before the prompt has been computed, and after the end."""
        self.frames = FrameReader(model) if sound is not None and task.speaks else None
        self.sound = sound if self.frames is not None else None
        self.stream: int | None = None
        """Number of the codec's stream, once there are frames."""
        self.text_over = task.text_forced
        self.began: float | None = None
        self.runner: object = None
        """Keeps the thread that decodes the answer alive until it has ended."""
        self.name = name
        self._cancel, self._cancelled = cancel, False
        self._done = Event()
        self.pieces: SimpleQueue[tuple[list[int], Tensor | None] | None] = SimpleQueue()
        """Text tokens and sound [n] as they come; None behind the last."""
        self._reported = 0
        self._traceback: TracebackType | None = None

    # for whoever asked

    def __iter__(self) -> Chunks:
        """Iterate over the chunks of the answer as they come; dropping the iterator cancels the answer."""
        return Chunks(self)

    def wait(self, timeout: float | None = None) -> Answer:
        """Return the whole answer when it has ended.

        Raises:
            TimeoutError: it has not after so many seconds; it goes on.
            Exception: what ended the answer, if it was an error.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"no whole answer after {timeout:g} s")
        self.check()
        return read_answer(self.model, self.task, self.steps, self.end)

    def cancel(self) -> None:
        """End the answer before the next decode step; what was emitted until then stays."""
        self._cancelled = True

    @property
    def done(self) -> bool:
        """Whether the answer has ended."""
        return self._done.is_set()

    def check(self) -> None:
        """Raise what ended the answer, if it was an error."""
        if self.error is not None:
            raise self.error.with_traceback(self._traceback)  # which would grow with each time otherwise

    # for the running batch

    @property
    def truncated_by(self) -> str | None:
        """Reason for which the answer is to be truncated now, one of `ENDS`; None = there is none."""
        if self._cancelled or (self._cancel is not None and self._cancel.is_set()):
            return CANCELLED
        if len(self.steps) >= self.max_steps:
            return STEP_LIMIT
        limit = self.decoding.time_limit
        if limit is not None and self.began is not None and monotonic() - self.began >= limit:
            return TIME_LIMIT
        return None

    def begin(self) -> None:
        """Start the time that `Decoding.time_limit` bounds."""
        self.began = monotonic()

    def emit(self, tokens: list[int]) -> None:
        """Append the S tokens of the next decode step to the answer."""
        self.steps.append(tokens)
        counts = self.decoding.constrain or len(self.steps) > 1  # the published code does not look at the first step
        self.text_over = self.text_over or (counts and tokens[0] == self.model.layout.text.eot)
        if self.frames is not None:
            self.frames.push(tokens)

    def report(self, wav: Tensor | None = None) -> None:
        """Hand out the text tokens that have been emitted since the last report, and the sound [n] that has been
        decoded. Where there is neither, nobody is woken."""
        tokens = [step[0] for step in self.steps[self._reported :] if self.model.layout.is_text(step[0])]
        self._reported = len(self.steps)
        if tokens or wav is not None:
            self.pieces.put((tokens, wav))

    def finish(self, end: str | None, error: BaseException | None = None) -> None:
        """End the answer, with the reason or the error; nothing is handed out after it."""
        if isinstance(error, ValueError) and self.name is not None:
            error = BadQuestion(f"{self.name}: {error}") if isinstance(error, BadQuestion) else error
        if error is not None:  # it may be kept for long, and with its frames the keys and values of all answers
            self._traceback = error.__traceback__
            traceback.clear_frames(self._traceback)
        self.end, self.error = end, error
        self.runner = None
        self.pieces.put(None)
        self._done.set()


def _seed(seed: int | None, decoding: Decoding) -> int:
    """Check a seed, or draw one where noise decides anything."""
    if seed is not None:
        SEED.check("seed", seed)
        return int(seed)
    return int(torch.randint(2**32, ())) if decoding.text.draws or decoding.audio.draws else 0


class Chunks:
    """An iterator over the chunks of an answer while it grows.

    Raises:
        Exception: what ended the answer, if it was an error.
    """

    def __init__(self, request: Request):
        self._request: Request | None = request
        self._text = TextReader(request.model)

    def __iter__(self) -> Chunks:
        return self

    def __next__(self) -> Chunk:
        request = self._request
        if request is None:
            raise StopIteration
        if (piece := request.pieces.get()) is not None:
            tokens, wav = piece
            return Chunk("".join(map(self._text.push, tokens)), torch.zeros(0) if wav is None else wav)
        self._request = None
        request.pieces.put(None)  # for whoever iterates once more
        request.check()
        return Chunk(self._text.finish(), torch.zeros(0), request.end)

    def close(self) -> None:
        """Cancel the answer and end the iteration."""
        request, self._request = self._request, None
        if request is not None:
            request.cancel()

    def __del__(self) -> None:
        self.close()
