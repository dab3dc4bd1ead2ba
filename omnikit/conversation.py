"""Conversations of several turns, each of which continues the KV cache of the turns before it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Unpack

from omnikit.audio.io import name_of
from omnikit.counter_rng import GOLDEN
from omnikit.generate import CANCELLED, END, History, Question, Request
from omnikit.generate.history import Turn, UnknownTurn
from omnikit.generate.request import SEED, Chunks
from omnikit.option_ranges import COUNT, NOT_NEGATIVE, Range
from omnikit.streaming import EXACT, check_mode
from omnikit.tasks import TASKS

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
    """Text of the answer as far as the conversation remembers it, see docs/conversations.md for a truncated one."""


class Conversation:
    """A conversation with a system: spoken and written questions in turns, whose answers depend on the turns before.

    The KV cache of all turns is stored in memory between turns, so each turn computes its own positions only. The turns
    of several conversations are answered in the same running batch. One conversation has one turn at a time. A turn
    that ended with an error, or before its answer began, is not remembered. Any thread may call any method; turns
    before the one that is being answered can be edited meanwhile.

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
        self._asked = 0  # number of questions so far
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
        self._check_free()
        question = self.omni.spoken_question(audio)
        return iter(self.submit(question, speak=speak, mode=mode, name=name_of(audio), **stop))

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
        self._check_free()
        return iter(self.submit(self.omni.written_question(text), speak=speak, mode=mode, text=text, **stop))

    def submit(
        self,
        question: Question,
        *,
        speak: bool = True,
        key: str | None = None,
        text: str | None = None,
        max_steps: int | None = None,
        mode: str = EXACT,
        name: str | None = None,
        **stop: Unpack[StopOptions],
    ) -> Request:
        """Submit the question of the next turn without waiting for its answer, see `omnikit.generate.Request`.

        If the previous answer was cancelled and has not ended yet, this one begins after its end.

        Args:
            question: the question from `Omni.spoken_question` or `Omni.written_question`, or encoder features.
            speak: answer with text and speech; False = text only.
            key: name of the turn for `crop` and `forget`; None = it has none.
            text: text of a written question, for `turns`.
            max_steps: maximum number of decode steps; None = the limit in `Omni.decoding`.
            mode: a name in `omnikit.streaming.MODES`, see `omnikit.api.Omni.stream`.
            name: the recording's name in error messages.
            stop: see `omnikit.api.StopOptions`.

        Raises:
            ValueError: the mode is unknown, or another turn has the key.
            RuntimeError: the previous answer is still being generated.
            omnikit.generate.QueueFull: too many questions are waiting.
        """
        check_mode(mode)
        task = TASK_OF[question.text is None, speak]
        with self._lock:
            self._check_free()
            self._history.check_new(key)
            seed = None if self.seed is None else (self.seed + self._asked * GOLDEN) % (SEED.high + 1)
            options = {"sound": mode, "name": name, "seed": seed, "max_steps": max_steps, "history": self._history}
            options |= {"turn": Turn(TASKS[task], key, text)}
            self._request = self.omni.submit(task, question, **options, **stop)
            self._asked += 1
            return self._request

    def crop(self, seconds: float, key: str | None = None) -> None:
        """Cut an answer to what was heard of it: its whole frames, and the same share of its text tokens, rounded up.

        An answer that is still being generated is cancelled first, and its end is waited for. The rest is forgotten as
        if it had never been said. The answer is closed like any other, and its positions and those of the turns after
        it are computed anew, together with the next question.

        Args:
            seconds: seconds of the answer's speech that were heard; more than it has are all of it.
            key: name of the turn; None = the last one.

        Raises:
            ValueError: a wrong number, or the conversation has no answer, or this one is text only, or the last one was
                ended before it began.
            omnikit.generate.UnknownTurn: no turn has the key, or it was dropped at the limit of positions, or its
                answer ended before it began; a KeyError.
        """
        if problem := NOT_NEGATIVE.problem(seconds):
            raise ValueError(f"crop {seconds}: {problem}")
        with self._lock:
            turn = self._last(seconds) if key is None else self._named(key)
            if not turn.task.speaks:
                which = "the last answer" if key is None else f"the answer of turn {key}"
                raise ValueError(f"crop {seconds:g}: {which} is text only")
            codec = self.omni.model.codec
            self._history.crop(turn, round(seconds * codec.sample_rate) // codec.frame_samples)

    def forget(self, key: str) -> None:
        """Remove a turn, question and answer, as if it had never been.

        If its answer is still being generated, it is cancelled first, and its end is waited for. The positions of the
        turns after it are computed anew together with the next question.

        Args:
            key: name of the turn.

        Raises:
            omnikit.generate.UnknownTurn: no turn has the key, or it was dropped at the limit of positions, or its
                answer ended before it began; a KeyError.
        """
        with self._lock:
            self._history.forget(self._named(key))

    def remember(self, key: str | None, question: str, answer: str) -> None:
        """Append a turn with a written question and a written answer that was not generated, after all other turns.

        Its positions are computed together with the next question.

        Args:
            key: name of the turn for `forget`; None = it has none.
            question: text of the question.
            answer: text of the answer; may be empty.

        Raises:
            ValueError: the question is empty, a text has characters that the tokenizer lacks, the turn is longer than
                the conversation may be, or another turn has the key.
        """
        asked = self.omni.written_question(question).text
        answered = self.omni.model.llm.tokenizer.encode(answer) if answer else []
        with self._lock:
            self._history.check_new(key)
            self._history.remember(key, question, asked, answered)

    def reset(self) -> None:
        """Forget all turns; an answer that is still being generated is cancelled first."""
        with self._lock:
            self._end(self._history.unfinished())
            self._history.clear()
            self._request, self._asked = None, 0

    def _check_free(self) -> None:
        """Check that every answer has ended or been cancelled.

        Raises:
            RuntimeError: one has not.
        """
        if any(request.truncated_by != CANCELLED for request in self._history.unfinished()):
            raise RuntimeError("conversation: the previous answer is still being generated; wait for it or cancel it")

    def _last(self, seconds: float) -> Turn:
        """Return the last turn, after answers that are still being generated were cancelled."""
        self._end(self._history.unfinished())
        request = self._request
        if request is not None and request.end not in (None, END) and not request.turn.whole:
            raise ValueError(f"crop {seconds:g}: the last answer was ended before it began")
        if (turn := self._history.last()) is None:
            raise ValueError(f"crop {seconds:g}: the conversation has no answer")
        return turn

    def _named(self, key: str) -> Turn:
        """Return the turn that has a key, after its answer was cancelled if it is still being generated."""
        turn = self._history.find(key)
        if (request := turn.request) is not None:
            self._end([request])
        if not turn.whole:
            raise UnknownTurn(f"turn {key}: its answer ended before it began, or failed, and is not remembered")
        return turn

    def _end(self, requests: list[Request]) -> None:
        """Cancel some requests, and wait for their ends."""
        for request in requests:
            request.cancel()
        for request in requests:
            with suppress(Exception):  # its error is for the thread that asked
                request.wait()
