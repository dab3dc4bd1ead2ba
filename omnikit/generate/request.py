"""A request: one question on its way through the running batch, with its answer so far."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Event
from time import monotonic
from types import TracebackType

import torch
from torch import Tensor

from omnikit.generate.detokenize import FrameReader, TextReader, read_answer
from omnikit.generate.history import Before, History, Turn
from omnikit.generate.types import (
    CANCELLED,
    END,
    STEP_LIMIT,
    TIME_LIMIT,
    Answer,
    BadQuestion,
    Chunk,
    Decoding,
    Question,
    TokenCounts,
)
from omnikit.model import OmniLM
from omnikit.option_ranges import Range
from omnikit.strategies import Strategy
from omnikit.streaming import check_mode
from omnikit.tasks import Task

SEED = Range(0, 2**32 - 1, whole=True)
"""Range of valid seeds: the sampling noise is a 32-bit hash."""


class Request:
    """A question and its answer, which grows while a `RunningBatch` decodes it.

    Any thread may iterate over the chunks or take them by `next_chunk`, `subscribe` to them, `wait` for the whole
    answer, `cancel` it, and read `features` and `counts`. All other members belong to the thread that steps the running
    batch.

    Args:
        model: model that answers; its tokenizer and token layout decode the emitted tokens.
        task: what is given and what is answered.
        question: content of the prompt.
        decoding: sampling options and limits.
        strategy: decoding strategy.
        seed: seed of the sampling noise, 0 to 2**32 - 1; it alone determines the answer, whatever else is in the batch.
            None = drawn from torch's default generator if anything is sampled.
        sound: mode of `omnikit.streaming.MODES` in which the codec decodes the growing answer; None = no waveform.
        cancel: event that any thread may set to cancel the request; None = only `Request.cancel` does.
        name: name of the question, which precedes its error messages.
        history: conversation that the question continues, to which the answer is appended; None = there is none.
        turn: turn of `history` that the request computes, see `omnikit.generate.history.Turn`; None = a new one without
            a key.
        low_priority: admit the request only while no other one waits, and never to the last quarter of the slots.
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
        history: History | None = None,
        turn: Turn | None = None,
        low_priority: bool = False,
    ):
        if sound is not None:
            check_mode(sound)
        if cancel is not None and not isinstance(cancel, Event):
            raise TypeError(f"cancel: a threading.Event is wanted, not {type(cancel).__name__}")
        self.model, self.task, self.question = model, task, question
        self.decoding, self.strategy = decoding, strategy.for_task(task)
        self.seed = _seed(seed, decoding)
        self.max_steps = decoding.max_steps
        """Maximum number of decode steps: `Decoding.max_steps`, or fewer where the backbone has no more positions."""
        self.steps: list[list[int]] = []
        """Emitted tokens, a list of S ids for each decode step."""
        self.end: str | None = None
        """Reason for which the answer ended, one of `ENDS`; None while it is being decoded, and after an error."""
        self.error: BaseException | None = None
        self.slots: list[int] = []
        """Slots of the request's sequences in the running batch; empty before admission and after release."""
        self.frames = FrameReader(model) if sound is not None and task.speaks else None
        self.sound = sound if self.frames is not None else None
        self.stream: int | None = None
        """Number of the answer's decode stream among those of the codec; None before the first frame."""
        self.text_over = task.text_forced
        self.submitted: float | None = None
        self.began: float | None = None
        self.runner: object = None
        """Reference that keeps the decoding thread alive until the answer has ended."""
        self.name = name
        self.history = history
        self.turn = None if history is None else turn or Turn(task)
        """Turn of the conversation that the request computes; None if it continues none."""
        self.low_priority = low_priority
        self.features: Tensor | None = question.features
        """Features [T, D] of a spoken question, for a `Question` of another request; None until it is encoded."""
        self.closing: list[int] | None = None
        """Tokens of the decode step that ended the answer, which are not emitted; None = it was truncated."""
        self._cancel, self._cancelled = cancel, False
        self._done = Event()
        self.chunks: SimpleQueue[tuple[list[int], Tensor | None] | None] = SimpleQueue()
        """Queue of chunks to hand out: text tokens and samples [n], if any; None follows the last chunk."""
        self._text = TextReader(model)
        self._reported = 0
        self._read = False  # whether `next_chunk` has returned the last chunk
        self._callbacks: tuple[Callable[[], None], ...] = ()
        self._positions = (0, 0, 0)  # of prompt, history and KV cache, see `TokenCounts`
        self._traceback: TracebackType | None = None

    # for the thread that asked

    def __iter__(self) -> Chunks:
        """Return an iterator over the answer's chunks as they are decoded; dropping it cancels the request."""
        return Chunks(self)

    def next_chunk(self) -> Chunk | None:
        """Return the next chunk of the answer without waiting; None = there is none now, or the last one was returned.

        The last chunk says why the answer ended.

        Raises:
            Exception: the error that ended the answer; raised once.
        """
        if self._read:
            return None
        try:
            found = self.read_chunk(wait=False)
        except Empty:
            return None
        except BaseException:
            self._read = True
            raise
        self._read = found.end is not None
        return found

    def read_chunk(self, *, wait: bool = True) -> Chunk:
        """Return the next chunk of the answer; the last one is returned again and again.

        Args:
            wait: wait for it.

        Raises:
            queue.Empty: there is none, and it is not waited for.
            Exception: the error that ended the answer.
        """
        if (chunk := self.chunks.get(wait)) is not None:
            tokens, wav = chunk
            return Chunk("".join(map(self._text.push, tokens)), torch.zeros(0) if wav is None else wav)
        self.chunks.put(None)  # for whoever reads after this
        self.check()
        return Chunk(self._text.finish(), torch.zeros(0), self.end)

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call a function whenever `next_chunk` has something new, the end included; at once if it has something now.

        It is called from the decoding thread, which it must not hold up, or from this one. It takes chunks by
        `next_chunk` until that returns None, or makes another thread do so. If it raises an exception, nobody listens
        any more, so it is not called again and the request is cancelled.
        """
        self._callbacks = (*self._callbacks, callback)
        if not self.chunks.empty():
            self._call(callback)

    def wait(self, timeout: float | None = None) -> Answer:
        """Wait until the answer has ended, and return it whole.

        Raises:
            TimeoutError: the answer has not ended after `timeout` seconds; its decoding continues.
            Exception: the error that ended the answer.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"no whole answer after {timeout:g} s")
        self.check()
        return read_answer(self.model, self.task, self.steps, self.end)

    def cancel(self) -> None:
        """Cancel the request before its next decode step; tokens that were emitted earlier remain in the answer."""
        self._cancelled = True

    @property
    def done(self) -> bool:
        """Whether the answer has ended, with or without an error."""
        return self._done.is_set()

    @property
    def ended(self) -> bool:
        """Whether the answer has ended, like `done`, but true as soon as its last chunk can be read."""
        return self.end is not None or self.error is not None

    @property
    def counts(self) -> TokenCounts:
        """Numbers of positions, features and tokens of the question, and of the answer so far."""
        answer = read_answer(self.model, self.task, list(self.steps), END)
        features = 0 if self.features is None else len(self.features)
        return TokenCounts(*self._positions, features, len(answer.text), answer.codes.shape[1])

    def check(self) -> None:
        """Raise the error that ended the answer, if there was one."""
        if self.error is not None:
            raise self.error.with_traceback(self._traceback)  # otherwise each `raise` would lengthen its traceback

    # for the running batch

    @property
    def truncated_by(self) -> str | None:
        """Reason to end the answer before its next decode step, one of `ENDS`; None if it may continue."""
        if self._cancelled or (self._cancel is not None and self._cancel.is_set()):
            return CANCELLED
        if len(self.steps) >= self.max_steps:
            return STEP_LIMIT
        limit = self.decoding.time_limit
        if limit is not None and self.began is not None and monotonic() - self.began >= limit:
            return TIME_LIMIT
        return None

    @property
    def rows(self) -> int:
        """Number of slots that the request needs, one for each sequence of its strategy."""
        return len(self.strategy.text_only)

    @property
    def may_begin(self) -> bool:
        """Whether all earlier turns of the conversation have ended."""
        return self.history is None or self.history.may_begin(self.turn)

    def note_prompt(self, length: int, before: Before | None) -> None:
        """Note the number of positions of the prompt for `counts`, and what it follows in a conversation."""
        cached = 0 if before is None or before.parked is None else before.parked.length
        self._positions = (length, 0 if before is None else before.length, cached)

    def begin(self) -> None:
        """Start the time measurement for the limit `Decoding.time_limit`."""
        self.began = monotonic()

    def emit(self, tokens: list[int]) -> None:
        """Append the S tokens of the answer's next decode step."""
        self.steps.append(tokens)
        counts = self.decoding.constrain or len(self.steps) > 1  # the published code ignores an `eot` in the first step
        self.text_over = self.text_over or (counts and tokens[0] == self.model.layout.text.eot)
        if self.frames is not None:
            self.frames.push(tokens)

    def report(self, wav: Tensor | None = None) -> None:
        """Queue a chunk with the text tokens emitted since the last call and the samples [n], unless it is empty."""
        tokens = [step[0] for step in self.steps[self._reported :] if self.model.layout.is_text(step[0])]
        self._reported = len(self.steps)
        if tokens or wav is not None:
            self._queue((tokens, wav))

    def finish(self, end: str | None, error: BaseException | None = None) -> None:
        """End the answer with a reason of `ENDS` or an error, and wake the threads that wait for it."""
        if isinstance(error, ValueError) and self.name is not None:
            error = BadQuestion(f"{self.name}: {error}") if isinstance(error, BadQuestion) else error
        if error is not None:  # callers may keep it, and its stack frames refer to the KV cache of all answers
            self._traceback = error.__traceback__
            traceback.clear_frames(self._traceback)
        if self.history is not None:
            self.history.settle(self.turn)
            self.history = None  # whoever keeps the request, for its features say, does not keep the KV cache
        self.end, self.error = end, error
        self.runner = None
        self._done.set()
        self._queue(None)
        self._callbacks = ()  # they may refer to much

    def _queue(self, chunk: tuple[list[int], Tensor | None] | None) -> None:
        self.chunks.put(chunk)
        for callback in self._callbacks:  # one that is added after this line finds the chunk itself
            self._call(callback)

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:  # an error of one listener must not end the answers of others
            self._callbacks = tuple(each for each in self._callbacks if each is not callback)
            self.cancel()


def _seed(seed: int | None, decoding: Decoding) -> int:
    """Return a valid seed: the given one, a random one if anything is sampled, else 0.

    Raises:
        ValueError: a seed outside of `SEED`.
    """
    if seed is not None:
        SEED.check("seed", seed)
        return int(seed)
    return int(torch.randint(2**32, ())) if decoding.text.draws or decoding.audio.draws else 0


class Chunks:
    """An iterator over the chunks of a growing answer; the last chunk says why the answer ended.

    Raises:
        Exception: the error that ended the answer.
    """

    def __init__(self, request: Request):
        self._request: Request | None = request

    def __iter__(self) -> Chunks:
        return self

    def __next__(self) -> Chunk:
        request = self._request
        if request is None:
            raise StopIteration
        try:
            chunk = request.read_chunk()
        except Exception:  # not Ctrl-C, after which the iteration may go on
            self._request = None
            raise
        if chunk.end is not None:
            self._request = None
        return chunk

    def close(self) -> None:
        """Cancel the request and end the iteration."""
        request, self._request = self._request, None
        if request is not None:
            request.cancel()

    def __del__(self) -> None:
        self.close()
