"""Records of generation: decoding options, questions, answers and their chunks."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from omnikit.option_ranges import COUNT, FROM_ZERO, Range
from omnikit.sampling import Sampling

END, STEP_LIMIT, TIME_LIMIT, CANCELLED = ENDS = ("end", "step limit", "time limit", "cancelled")
"""Why an answer ended: of itself, or what cut it."""

_LIMITS = {"max_steps": COUNT, "min_steps": FROM_ZERO, "time_limit": Range(0, above=True, null=True)}
"""Numbers that the options of `Decoding` take."""


@dataclass(frozen=True)
class Decoding:
    """Sampling options and limits with which one answer is decoded.

    Args:
        text: sampling of the text stream.
        audio: sampling of the audio streams.
        constrain: pads are forced where an audio stream waits or has ended, ids outside the codebook are excluded, and
            all audio streams end with the frame after which the first one ends. False = as the published code does:
            every stream is sampled freely, and the first step is not checked for an end.
        max_steps: maximum number of decode steps.
        min_steps: no stream ends before so many decode steps.
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
    """A question that cannot be asked: it is empty, too long, not finite, or not what the task is given."""


@dataclass(frozen=True)
class Question:
    """The content of a prompt: text ids, a waveform, or encoder features made before. One of them is given.

    Args:
        text: ids of the backbone's tokenizer.
        features: encoder features [T, D], before the adapter.
        wav: waveform [N] in -1..1 at the encoder's sample rate; it is encoded when the question is admitted.
    """

    text: list[int] | None = None
    features: Tensor | None = None
    wav: Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """Text and codes of a whole answer, and why it ended."""

    text: list[int]
    """Text ids without `eot`."""
    codes: Tensor
    """Codes [K, T] of the frames that can be heard; T = 0 where the task does not speak."""
    end: str
    """One of `ENDS`."""

    @property
    def truncated(self) -> bool:
        """Whether a limit or a cancellation ended the answer."""
        return self.end != END


@dataclass(frozen=True)
class Chunk:
    """Piece of an answer's text and sound, which grow together."""

    text: str
    wav: Tensor
    """Samples [n] on the CPU; n may be 0."""
    end: str | None = None
    """In the last chunk of an answer, why it ended: one of `ENDS`."""
