"""Actions that the state machine of a Realtime session asks its surroundings to carry out, and their reports to it.

`session.RealtimeSession` has no I/O. Each of its methods returns a list of actions, which `endpoint` carries out in
their order: it sends events to the client, feeds the turn detector, and starts, cancels and edits answers of the
system.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

RATE = 24000
"""Sample rate in Hz of all audio inside a session; G.711 is converted at its edge."""


@dataclass(frozen=True)
class Send:
    """Send an event to the client."""

    event: dict[str, Any]


@dataclass(frozen=True)
class Detection:
    """Settings with which turns are detected in the client's audio.

    `silence_ms` is the pause that ends a turn, `prefix_ms` what is kept before its first speech sample. `idle_ms` is
    the time without speech after the end of an answer after which `Idle` is reported; None = never.
    """

    threshold: float = 0.5
    prefix_ms: float = 300.0
    silence_ms: float = 500.0
    idle_ms: float | None = None


@dataclass(frozen=True)
class Detect:
    """Detect turns with these settings from now on; None = end detection.

    A detector that is there already goes on, with its clock and with the turn in which it is.
    """

    detection: Detection | None


@dataclass(frozen=True)
class Listen:
    """Feed samples [n] (float32, at `RATE`) to the turn detector, which has counted all samples fed before."""

    samples: np.ndarray


@dataclass(frozen=True)
class SpokenQuestion:
    """A question as samples [N] (float32, at `RATE`)."""

    samples: np.ndarray


@dataclass(frozen=True)
class WrittenQuestion:
    """A question as text."""

    text: str


@dataclass(frozen=True)
class StartAnswer:
    """Start an answer.

    Args:
        response_id: id under which its chunks, its end or its error are reported.
        question: the question.
        speak: answer with text and speech; False = text only.
        remembered: the turn continues the session's conversation and is remembered in it under `response_id`; False =
            it stands alone, outside of the conversation.
        max_steps: maximum number of decode steps if it is below the server's; None = the server's.
    """

    response_id: str
    question: SpokenQuestion | WrittenQuestion
    speak: bool = True
    remembered: bool = True
    max_steps: int | None = None


@dataclass(frozen=True)
class Cancel:
    """End an answer at the next decode step; its end is reported like any other. Queued audio of it is not sent."""

    response_id: str


@dataclass(frozen=True)
class Crop:
    """Cut a remembered answer to its first seconds, those that were heard."""

    response_id: str
    seconds: float


@dataclass(frozen=True)
class Forget:
    """Remove a remembered turn, question and answer, from the conversation."""

    key: str


@dataclass(frozen=True)
class Remember:
    """Append a written turn that the client brings along, without generating anything."""

    key: str
    question: str
    answer: str


@dataclass(frozen=True)
class Transcribe:
    """Transcribe a spoken question with low priority, and report `transcribed` or `not_transcribed`."""

    item_id: str
    samples: np.ndarray
    response_id: str | None = None
    """Answer to the same question, whose encoder features can be used again; None = there is none."""


@dataclass(frozen=True)
class Close:
    """Close the connection after everything before has been sent."""

    code: int
    reason: str


Action = Send | Detect | Listen | StartAnswer | Cancel | Crop | Forget | Remember | Transcribe | Close


@dataclass(frozen=True)
class SpeechStarted:
    """Report of the detector: speech began at this time on the clock of the fed audio, prefix included."""

    start_ms: float
    """First millisecond that belongs to the turn: the speech's first sample less `prefix_ms`, never below 0."""
    speech_ms: float = 0.0
    """Milliseconds of speech heard so far."""


@dataclass(frozen=True)
class SpeechContinues:
    """Report of the detector: the turn that began goes on; sent at least every 100 ms of audio until it stops."""

    speech_ms: float


@dataclass(frozen=True)
class SpeechStopped:
    """Report of the detector: the turn ended, after a pause of `silence_ms`."""

    end_ms: float
    """Last millisecond that belongs to the turn, on the clock of the fed audio."""
    speech_ms: float = 0.0


@dataclass(frozen=True)
class Idle:
    """Report of the detector: nothing was said for `idle_ms`."""

    now_ms: float


Heard = SpeechStarted | SpeechContinues | SpeechStopped | Idle


@dataclass(frozen=True)
class Usage:
    """Number of tokens of an answer: positions of its prompt, those of earlier turns included, and emitted tokens."""

    input_text: int = 0
    input_audio: int = 0
    cached: int = 0
    output_text: int = 0
    output_audio: int = 0
    details: dict[str, Any] = field(default_factory=dict)
