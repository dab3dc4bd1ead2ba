"""A Realtime session on simulated time: the server's session logic with a recorded user and a client that plays.

    recording -> 20 ms at a time -> session (omnikit.serve.realtime) -> answers -> player -> what was played

The user's audio comes in as from a microphone, one step of simulated time after another. Chunks of an answer come when
the system has generated them, which takes a given time (see `Generation`), and are played one after another. The client
behaves like the page of `omnikit serve`: as soon as the server says that the user speaks, it stops playing and tells
the server how much was heard. Nothing waits for a clock, so the same recording gives the same dialog on any machine,
unless the time of generation is measured.
"""

from __future__ import annotations

import base64
import heapq
import itertools
import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from threading import Event
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from omnikit.api import Omni
from omnikit.errors import one_line
from omnikit.evaluate.word_times import Stretch
from omnikit.generate import CANCELLED
from omnikit.option_ranges import NOT_NEGATIVE
from omnikit.serve.realtime.actions import (
    RATE,
    Action,
    Cancel,
    Close,
    Crop,
    Detect,
    Forget,
    Listen,
    Remember,
    Send,
    StartAnswer,
    Usage,
)
from omnikit.serve.realtime.answers import INVALID
from omnikit.serve.realtime.input_buffer import stored
from omnikit.serve.realtime.session import RealtimeSession
from omnikit.serve.realtime.session_conversation import SessionConversation
from omnikit.serve.realtime.turn_detector import TurnDetector
from omnikit.serve.settings import ServerSettings

STEP = RATE // 50
"""Number of samples in which the user's audio comes in: 20 ms."""
MEASURED = "measured"
LONGEST_MINUTES = 24 * 60.0
"""Limit of a simulated session in minutes, which no recording should reach."""
Generation = str | float
"""Time that generating an answer takes: `MEASURED`, the wall time of this machine; or a real-time factor, the seconds
of computing per second of speech, of which 0 gives the whole answer at once."""


def check_generation(value: Any) -> None:
    """Refuse a time of generation that is neither `MEASURED` nor a real-time factor.

    Raises:
        ValueError: the message names the flag and the value.
    """
    if value != MEASURED and (problem := NOT_NEGATIVE.problem(value)):
        raise ValueError(f"--generation_seconds {value}: {problem} (seconds per second of speech), or {MEASURED}")


@dataclass(frozen=True)
class TimedChunk:
    """A chunk of an answer, and when it has been generated."""

    seconds: float
    """Seconds from the question to the chunk."""
    text: str
    samples: np.ndarray  # [n] float32 at the rate of the system


@dataclass(frozen=True)
class TimedAnswer:
    """A whole answer, as its chunks are generated one after another."""

    chunks: tuple[TimedChunk, ...]
    end: str
    """Reason why it ended, one of `omnikit.generate.ENDS`."""

    @property
    def seconds(self) -> float:
        """Seconds from the question to the end of the answer."""
        return self.chunks[-1].seconds if self.chunks else 0.0

    @property
    def text(self) -> str:
        """Text of the whole answer."""
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def samples(self) -> np.ndarray:
        """Samples [n] of the whole answer at the rate of the system."""
        return np.concatenate([np.zeros(0, np.float32), *(chunk.samples for chunk in self.chunks)])


class Answering(Protocol):
    """Interface of a system that answers the questions of a simulated session; its methods may block."""

    sample_rate: int
    """Sample rate of answers in Hz."""

    def answer(self, question: StartAnswer) -> TimedAnswer:
        """Return the whole answer to a question.

        Raises:
            ValueError: the question cannot be answered.
        """

    def edit(self, edit: Crop | Forget | Remember) -> None:
        """Change what is remembered of the turns before."""


class SystemAnswering:
    """An `Answering` that asks a system, in one conversation.

    An answer is always generated whole, also one that is interrupted: the conversation is then cut to the share of it
    that was played, or had been generated.

    Args:
        omni: system that answers.
        generation: time that generating takes.
        seed: seed of sampled answers.
    """

    def __init__(self, omni: Omni, generation: Generation = 0, seed: int | None = None):
        check_generation(generation)
        self.generation, self.sample_rate = generation, omni.sample_rate
        self._conversation = SessionConversation(omni, seconds=None, conversation=omni.conversation(seed=seed))

    def answer(self, question: StartAnswer) -> TimedAnswer:
        """Answer a question with the system; see `Answering`."""
        began, modelled, chunks, end = perf_counter(), 0.0, [], ""
        for chunk in self._conversation.submit(question, Event()):
            samples, end = chunk.wav.float().cpu().numpy(), chunk.end
            if self.generation == MEASURED:
                modelled = perf_counter() - began
            else:
                modelled += self.generation * len(samples) / self.sample_rate
            if chunk.text or len(samples):
                chunks.append(TimedChunk(modelled, chunk.text, samples))
        return TimedAnswer(tuple(chunks), end)

    def edit(self, edit: Crop | Forget | Remember) -> None:
        """Change the conversation; see `Answering`."""
        self._conversation.edit(edit)


@dataclass
class _Queued:
    """Samples of one chunk of an answer, which wait to be played."""

    item_id: str
    begin: int
    """Number of the first sample in what is played."""
    source: int
    """Number of the first sample in the answer."""
    samples: np.ndarray  # [n] int16

    @property
    def end(self) -> int:
        return self.begin + len(self.samples)


class SimulatedPlayer:
    """A client's player on simulated time: speech is played after what came before it, and can be stopped."""

    def __init__(self) -> None:
        self._queued: list[_Queued] = []
        self._sent: dict[str, int] = {}  # number of samples by item

    @property
    def end(self) -> int:
        """Number of the sample at which the player falls silent."""
        return self._queued[-1].end if self._queued else 0

    def play(self, item_id: str, samples: np.ndarray, now: float) -> None:
        """Queue further samples [n] (int16, at `RATE`) of an answer at a time in seconds."""
        source = self._sent.get(item_id, 0)
        self._sent[item_id] = source + len(samples)
        if len(samples):
            self._queued.append(_Queued(item_id, max(self.end, round(now * RATE)), source, samples))

    def stop(self, now: float) -> tuple[str, float] | None:
        """Drop what has not been played at a time in seconds.

        Returns:
            The item of the answer that was playing and how many milliseconds of it were played; None = none was.
        """
        at = round(now * RATE)
        if at >= self.end:
            return None
        playing = next(stretch for stretch in self._queued if stretch.end > at)
        played = playing.source + max(0, at - playing.begin)
        kept = [stretch for stretch in self._queued if stretch.begin < at]
        if kept and kept[-1].end > at:
            kept[-1].samples = kept[-1].samples[: at - kept[-1].begin]
        self._queued = kept
        return playing.item_id, 1000 * played / RATE

    def waveform(self, length: int) -> np.ndarray:
        """Return what was played as samples [length] (int16, at `RATE`), with silence in between."""
        wav = np.zeros(max(length, self.end), np.int16)
        for stretch in self._queued:
            wav[stretch.begin : stretch.end] = stretch.samples
        return wav[:length]

    def stretches(self, item_id: str) -> list[Stretch]:
        """Return the stretches of an answer that were played; those without a gap between them are one."""
        found: list[Stretch] = []
        for each in self._queued:
            if each.item_id != item_id:
                continue
            after = found[-1].begin + found[-1].length if found else None
            if after is not None and round(after * RATE) == each.begin:
                found[-1] = replace(found[-1], length=found[-1].length + len(each.samples) / RATE)
            else:
                found.append(Stretch(each.source / RATE, each.begin / RATE, len(each.samples) / RATE))
        return found


@dataclass
class PlayedAnswer:
    """One answer of a simulated session, and what was played of it."""

    asked: float
    """Second at which its question was complete."""
    answer: TimedAnswer
    stretches: list[Stretch] = field(default_factory=list)
    """Stretches of it that were played, in their order."""
    generated: float = 0.0
    """Seconds of speech that had been generated when it ended or was cancelled."""
    stopped: float | None = None
    """Second at which the user's speech stopped it; None = it was not stopped while it was generated or played."""


@dataclass(frozen=True)
class SimulatedDialog:
    """The speech that a user would have heard from a system while speaking the recording."""

    output: np.ndarray  # [n] int16 at RATE, on the recording's clock
    answers: list[PlayedAnswer]
    problems: list[str]
    """Messages of errors that the server sent."""


class SimulatedSession:
    """A session with one recorded user; it can be run once.

    Args:
        answering: what answers.
        turn_detection: settings of `session.update`, such as `{"silence_duration_ms": 700}`; None = the server's.
        interrupt_min_ms: milliseconds of speech over an answer before it counts as an interruption.
        max_audio_seconds: maximum length of one question in seconds.

    Raises:
        ValueError: the session refuses the settings of turn detection.
    """

    def __init__(
        self,
        answering: Answering,
        *,
        turn_detection: Mapping[str, Any] | None = None,
        interrupt_min_ms: float = ServerSettings.interrupt_min_ms,
        max_audio_seconds: float = ServerSettings.max_audio_seconds,
    ):
        settings = ServerSettings(
            interrupt_min_ms=interrupt_min_ms, max_audio_seconds=max_audio_seconds,
            session_minutes=LONGEST_MINUTES, idle_seconds=60 * LONGEST_MINUTES,
        )  # fmt: skip
        self.now = 0.0
        """Second of the simulated clock."""
        self.problems: list[str] = []
        self._answering, self._player = answering, SimulatedPlayer()
        self._numbers = itertools.count()
        self._session = RealtimeSession(
            "system", settings, now=lambda: self.now, new_id=lambda kind: f"{kind}_{next(self._numbers)}",
            out_rate=answering.sample_rate,
        )  # fmt: skip
        self._detector: TurnDetector | None = None
        self._settings: Mapping[str, Any] = {}  # of turn detection, as the session shows them
        self._soon: deque[tuple[Callable[..., list[Action]], tuple[Any, ...]]] = deque()
        self._due: list[tuple[float, int, Callable[[], None]]] = []  # a heap by time
        self._answers: dict[str, PlayedAnswer] = {}  # by response
        self._running: set[str] = set()  # responses whose ends were not reported
        self._played: dict[str, PlayedAnswer] = {}  # by item
        self._silences = 0  # number of times that waiting for the user's speech was begun or given up
        self._call(self._session.opened)
        if turn_detection is not None:
            change = {"type": "realtime", "audio": {"input": {"turn_detection": dict(turn_detection)}}}
            self._call(self._session.receive, {"type": "session.update", "session": change})
            self._check_settings(turn_detection)

    def _check_settings(self, wanted: Mapping[str, Any]) -> None:
        """Refuse settings of turn detection that the session refuses or, as the protocol wants it, ignores.

        Raises:
            ValueError: the message names the setting.
        """
        unknown = [name for name in wanted if name not in self._settings]
        if unknown and not self.problems:
            choices = ", ".join(self._settings)
            self.problems.append(f"{self._settings['type']} has no setting {unknown[0]} (choices: {choices})")
        if self.problems:
            raise ValueError(f"--turn_detection {dict(wanted)}: {one_line(self.problems[0])}")

    def run(self, samples: np.ndarray, tail: float = 0.0) -> SimulatedDialog:
        """Play a recording to the session, and return what it said meanwhile.

        Args:
            samples: samples [n] of the user (float32, at `RATE`).
            tail: seconds of silence after the recording, which the output has, too.
        """
        samples = np.concatenate([samples, np.zeros(round(tail * RATE), np.float32)])
        for begin in range(0, len(samples), STEP):
            self._advance((begin + STEP) / RATE)
            pcm = stored(samples[begin : begin + STEP]).astype("<i2").tobytes()
            event = {"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm).decode()}
            self._call(self._session.receive, event)
        self._advance(self.now)
        for item_id, answer in self._played.items():
            answer.stretches = self._player.stretches(item_id)
        return SimulatedDialog(self._player.waveform(len(samples)), [*self._answers.values()], self.problems)

    # the clock

    def _advance(self, until: float) -> None:
        """Let the time go on to a second, and do what is due until then."""
        while self._due and self._due[0][0] <= until:
            self.now, _, do = heapq.heappop(self._due)
            do()
        self.now = until

    def _at(self, second: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._due, (max(second, self.now), next(self._numbers), do))

    def _call(self, method: Callable[..., list[Action]], *args: Any) -> None:
        """Call a method of the session, then those that its actions lead to at the same time, in their order."""
        self._soon.append((method, args))
        if len(self._soon) > 1:  # the loop below is running
            return
        while self._soon:
            method, args = self._soon[0]
            for action in method(*args):
                self._carry_out(action)
            self._soon.popleft()

    # the server

    def _carry_out(self, action: Action) -> None:
        match action:
            case Send():
                self._take(action.event)
            case Detect():
                self._detector = None if action.detection is None else TurnDetector(action.detection)
            case Listen() if self._detector is not None:
                for report in self._detector.push(action.samples):
                    self._call(self._session.heard, report)
            case StartAnswer():
                self._start(action)
            case Cancel():
                self._cancel(action.response_id)
            case Crop() | Forget() | Remember():
                self._answering.edit(action)
            case Close():
                self.problems.append(action.reason)

    def _start(self, question: StartAnswer) -> None:
        self._silences += 1
        if self._detector is not None:
            self._detector.pause_idle()
        try:
            answer = self._answering.answer(question)
        except ValueError as error:
            self._call(self._session.failed, question.response_id, str(error), INVALID)
            self._wait_for_speech()
            return
        self._running.add(question.response_id)
        self._answers[question.response_id] = PlayedAnswer(self.now, answer)
        for chunk in answer.chunks:
            self._at(self.now + chunk.seconds, lambda chunk=chunk: self._chunk(question.response_id, chunk))
        self._at(self.now + answer.seconds, lambda: self._end(question.response_id, answer.end))

    def _chunk(self, response_id: str, chunk: TimedChunk) -> None:
        if response_id in self._running:
            self._answers[response_id].generated += len(chunk.samples) / self._answering.sample_rate
            self._call(self._session.chunk, response_id, chunk.text, chunk.samples)

    def _end(self, response_id: str, end: str) -> None:
        if response_id in self._running:
            self._running.remove(response_id)
            self._call(self._session.answered, response_id, end, Usage())
            self._wait_for_speech()

    def _cancel(self, response_id: str) -> None:
        if response_id in self._running:
            answer = self._answers[response_id]
            answer.stopped = self.now
            self._answering.edit(Crop(response_id, answer.generated))  # no more would have been generated
            self._at(self.now, lambda: self._end(response_id, CANCELLED))

    def _wait_for_speech(self) -> None:
        """Wait for the user to speak again once the last answer has been played."""
        self._silences = number = self._silences + 1
        if not self._running:
            self._at(self._player.end / RATE, lambda: self._start_idle(number))

    def _start_idle(self, number: int) -> None:
        if number == self._silences and self._detector is not None:
            self._detector.start_idle()

    # the client

    def _take(self, event: Mapping[str, Any]) -> None:
        """Do what a client does with an event of the server."""
        kind = event["type"]
        if kind == "response.output_audio.delta":
            item_id = event["item_id"]
            self._played.setdefault(item_id, self._answers[event["response_id"]])
            self._player.play(item_id, np.frombuffer(base64.b64decode(event["delta"]), "<i2"), self.now)
        elif kind == "input_audio_buffer.speech_started" and self._settings["interrupt_response"]:
            self._stop()
        elif kind in ("session.created", "session.updated"):
            self._settings = event["session"]["audio"]["input"]["turn_detection"]
        elif kind == "error":
            self.problems.append(event["error"]["message"])
        elif kind == "response.done" and event["response"]["status"] == "failed":
            self.problems.append(event["response"]["status_details"]["error"]["message"])

    def _stop(self) -> None:
        """Stop playing, and tell the server what was heard."""
        if (heard := self._player.stop(self.now)) is None:
            return
        item_id, milliseconds = heard
        self._played[item_id].stopped = self.now
        truncate = {"type": "conversation.item.truncate", "item_id": item_id, "content_index": 0}
        self._call(self._session.receive, json.dumps({**truncate, "audio_end_ms": int(milliseconds)}))

