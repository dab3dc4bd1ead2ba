"""Data classes of generation: decoding options, questions, answers and their chunks."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from omnikit.option_ranges import COUNT, FROM_ZERO, Range
from omnikit.sampling import Sampling
from omnikit.tasks import prompt_length

END, STEP_LIMIT, TIME_LIMIT, CANCELLED = ENDS = ("end", "step limit", "time limit", "cancelled")
"""Reasons for which an answer ends: an end mark of the model, or a limit or cancellation that truncated it."""

_LIMITS = {"max_steps": COUNT, "min_steps": FROM_ZERO, "time_limit": Range(0, above=True, null=True)}
"""Mapping from the name of each limit in `Decoding` to the range of values that it accepts."""


@dataclass(frozen=True)
class Decoding:
    """Sampling options and limits with which one answer is decoded.

    Args:
        text: sampling options of the text stream.
        audio: sampling options of the audio streams.
        constrain: force pads where an audio stream has not begun or has ended, exclude ids outside the codebook, and
            end all audio streams after the same frame as the one that begins first. False = as in the published code:
            every stream is sampled freely, and ends in the first step are ignored.
        max_steps: maximum number of decode steps.
        min_steps: number of decode steps before which no stream ends.
        time_limit: maximum number of seconds from the moment at which the question is encoded; None = no limit.

    Raises:
        ValueError: a limit that leaves no step, or a value that is not a number.
    """

    text: Sampling = field(default_factory=Sampling)
    audio: Sampling = field(default_factory=Sampling)
    constrain: bool = True
    max_steps: int = 1024
    min_steps: int = 0
    time_limit: float | None = None

    def __post_init__(self) -> None:
        for name, allowed in _LIMITS.items():
            if problem := allowed.problem(value := getattr(self, name)):
                raise ValueError(f"{name}: {value}; it {problem}")


class BadQuestion(ValueError):
    """Error raised for a question that is empty, too long, not finite, or not what the task is given."""


@dataclass(frozen=True)
class Question:
    """The content of a prompt: one of text ids, a waveform, or ready encoder features.

    Args:
        text: ids of the backbone's tokenizer.
        features: encoder features [T, D], before the adapter.
        wav: waveform [N] in -1..1 at the encoder's sample rate; it is encoded when the request is admitted.
    """

    text: list[int] | None = None
    features: Tensor | None = None
    wav: Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """Text ids and codes of a whole answer, and the reason for which it ended."""

    text: list[int]
    """Text ids of the answer, without `eot`."""
    codes: Tensor
    """Codes [K, T] of the answer's audible frames; T = 0 where the task has no audio."""
    end: str
    """Reason for which the answer ended, one of `ENDS`."""

    @property
    def truncated(self) -> bool:
        """Whether a limit or a cancellation ended the answer."""
        return self.end != END


@dataclass(frozen=True)
class Chunk:
    """A part of a streamed answer: the text and the samples that it adds to those before."""

    text: str
    wav: Tensor
    """Samples [n] of the chunk, on the CPU; n may be 0."""
    end: str | None = None
    """Reason why the answer ended, one of `ENDS`; set in its last chunk only, None in earlier ones."""


@dataclass(frozen=True)
class TokenCounts:
    """Numbers of positions, features and tokens of a request and of its answer so far."""

    prompt: int
    """Number of positions of the prompt, without those of a conversation before it; 0 until it is embedded."""
    history: int
    """Number of positions of the turns before in a conversation."""
    cached: int
    """Number of the positions in `history` that were in the KV cache; the others were computed with the prompt."""
    features: int
    """Number of encoder frames of a spoken question; 0 for a written one, or until it is encoded."""
    text: int
    """Number of emitted text tokens, without `eot`."""
    frames: int
    """Number of audible frames of the answer that are complete."""

    @property
    def spoken(self) -> int:
        """Number of positions of the prompt that hold adapted features of a spoken question."""
        return max(0, self.prompt - prompt_length(0)) if self.features else 0
