"""Conversations of several turns, each of which continues the KV cache of the turns before it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Unpack

from omnikit.audio.io import name_of
from omnikit.counter_rng import GOLDEN
from omnikit.generate import CANCELLED, END, History, Question, Request
from omnikit.generate.request import SEED, Chunks
from omnikit.option_ranges import COUNT, NOT_NEGATIVE, Range
from omnikit.streaming import EXACT, check_mode

if TYPE_CHECKING:
    from omnikit.api import Audio, Omni, Reply, StopOptions

TASK_OF = {(True, True): "A1A2", (True, False): "A1T2", (False, True): "T1A2", (False, False): "T1T2"}
"""Mapping from whether the question is spoken and whether the answer is to be spoken to the name of the task."""


@dataclass(frozen=True)
class Exchange:
    """The texts of one turn of a conversation."""

    question: str | None
    """Text of a written question; None for a spoken one, which is not transcribed."""
    answer: str
    """Text of the answer, as far as the conversation remembers it: an interrupted one up to what was heard."""


class Conversation:
    """A conversation with a system: spoken and written questions in turns, whose answers depend on the turns before.

    The KV cache of all turns is stored in memory between turns, so each turn computes its own positions only. The turns
    of several conversations are answered in the same running batch. One conversation has one turn at a time. A turn
    that ended with an error, or before its answer began, is not remembered.

    Args:
        omni: system that answers.
        seed: seed of sampled answers; each turn has a seed of its own that is derived from it. None = drawn for each.
        max_positions: number of positions at which the oldest turns are dropped, down to half of it; None = the
            backbone's maximum, if it has one.

    Raises:
        ValueError: a wrong seed or number, or an engine that cannot store a sequence between turns.
    """

    def __init__(self, omni: Omni, *, seed: int | None = None, max_positions: int | None = None):
        engine, most = omni.decoder.engine, omni.model.llm.max_positions
        if not engine.parks:
            raise ValueError(f"engine {engine.name}: cannot hold a conversation, its slots do not park sequences")
        if seed is not None:
            SEED.check("seed", seed)
        if max_positions is not None:
            Range(1, most or COUNT.high, whole=True).check("max_positions", max_positions)
        self.omni, self.seed = omni, seed
        self._history = History(omni.model, max_positions)
        self._request: Request | None = None
        self._before = 0  # turns when the last question was submitted
        self._lock = Lock()

    @property
    def turns(self) -> list[Exchange]:
        """Texts of all turns so far, those that were dropped at the limit included."""
        decode = self.omni.model.llm.tokenizer.decode
        return [Exchange(question, decode(answer)) for question, answer in self._history.texts()]

    def ask(self, audio: Audio, *, speak: bool = True, **stop: Unpack[StopOptions]) -> Reply:
        """Answer a spoken question.

        Args:
            audio: sound file, or waveform [N] in -1..1 at the encoder's sample rate.
            speak: answer with text and speech; False = text only.
            stop: see `omnikit.api.StopOptions`.

        Raises:
            ValueError: the file cannot be read, or is longer than encoder or conversation accept.
            RuntimeError: the previous answer is still being generated.
            omnikit.generate.QueueFull: too many questions are waiting.
        """
        return self.omni.join(self.stream(audio, speak=speak, **stop))

    def stream(
        self, audio: Audio, *, speak: bool = True, mode: str = EXACT, **stop: Unpack[StopOptions]
    ) -> Chunks:
        """Answer a spoken question, yielding chunks while the answer is being decoded.

        Dropping the iterator ends the answer; then `crop` says how much of it was heard.

        Args:
            audio: sound file, or waveform [N] in -1..1 at the encoder's sample rate.
            speak: answer with text and speech; False = text only.
            mode: a name in `omnikit.streaming.MODES`, see `omnikit.api.Omni.stream`.
            stop: see `omnikit.api.StopOptions`.

        Raises:
            ValueError: see `ask`; or the mode is unknown.
            RuntimeError: the previous answer is still being generated.
        """
        question = partial(self.omni.spoken_question, audio)
        return self._turn(None, question, TASK_OF[True, speak], mode, name_of(audio), stop)

    def say(self, text: str, *, speak: bool = True, **stop: Unpack[StopOptions]) -> Reply:
        """Answer a written question.

        Args:
            text: the question.
            speak: answer with text and speech; False = text only.
            stop: see `omnikit.api.StopOptions`.

        Raises:
            ValueError: the text is empty, has characters that the tokenizer lacks, or is too long.
            RuntimeError: the previous answer is still being generated.
        """
        return self.omni.join(self.stream_written(text, speak=speak, **stop))

    def stream_written(
        self, text: str, *, speak: bool = True, mode: str = EXACT, **stop: Unpack[StopOptions]
    ) -> Chunks:
        """Answer a written question, yielding chunks while the answer is being decoded; see `say` and `stream`."""
        return self._turn(text, lambda: self.omni.written_question(text), TASK_OF[False, speak], mode, None, stop)

    def crop(self, seconds: float) -> None:
        """Cut the last answer to what was heard of it: its whole frames, and the same share of its text tokens.

        An answer that is still being generated is cancelled first. The rest is forgotten as if it had never been said.
        The answer's positions are computed anew, closed like any other answer, together with the next question.

        Args:
            seconds: seconds of the answer's speech that were heard; more than it has are all of it.

        Raises:
            ValueError: a wrong number, or the conversation has no answer, or the last one is text only or was ended
                before it began.
        """
        if problem := NOT_NEGATIVE.problem(seconds):
            raise ValueError(f"crop {seconds}: {problem}")
        with self._lock:
            self._end(cancel=True)
            turns, codec, request = self._history.turns, self.omni.model.codec, self._request
            cut = request is not None and request.end not in (None, END)
            if cut and len(self._history.texts()) == self._before:
                raise ValueError(f"crop {seconds:g}: the last answer was ended before it began")
            if not turns:
                raise ValueError(f"crop {seconds:g}: the conversation has no answer")
            if not turns[-1].task.speaks:
                raise ValueError(f"crop {seconds:g}: the last answer is text only")
            self._history.keep_frames(round(seconds * codec.sample_rate) // codec.frame_samples)

    def reset(self) -> None:
        """Forget all turns; an answer that is still being generated is cancelled first."""
        with self._lock:
            self._end(cancel=True)
            self._history.clear()
            self._request = None

    def _turn(
        self,
        text: str | None,
        question: Callable[[], Question],
        task: str,
        mode: str,
        name: str | None,
        stop: StopOptions,
    ) -> Chunks:
        """Submit the question of the next turn, and return an iterator over the chunks of its answer."""
        check_mode(mode)
        with self._lock:
            self._end(cancel=False)
            number = len(self._history.texts())
            seed = None if self.seed is None else (self.seed + number * GOLDEN) % (SEED.high + 1)
            options = {"sound": mode, "name": name, "seed": seed, "history": self._history}
            asked = question()
            self._history.asked = text
            self._before = number
            self._request = self.omni.submit(task, asked, **options, **stop)
            return iter(self._request)

    def _end(self, *, cancel: bool) -> None:
        """Wait for the end of the last answer if it is cancelled.

        Args:
            cancel: cancel it.

        Raises:
            RuntimeError: it is being generated and not cancelled.
        """
        request = self._request
        if request is None or request.ended:
            return
        if cancel:
            request.cancel()
        if request.truncated_by != CANCELLED:
            raise RuntimeError("conversation: the previous answer is still being generated; wait for it or cancel it")
        with suppress(Exception):  # its error was for the thread that asked
            request.wait()
