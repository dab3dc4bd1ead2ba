"""A transcript as subtitles, and in OpenAI's verbose form: one segment as long as the recording.

The systems do not say when a word was spoken.
"""

from __future__ import annotations

import zlib
from typing import Literal

from omnikit.serve.rest.response_bodies import Body


class DurationUsage(Body):
    """The `usage` of a verbose transcription: the length of the recording in seconds."""

    type: Literal["duration"]
    seconds: float


class TranscriptionSegment(Body):
    """An element of `segments` in a verbose transcription: a text, and the seconds between which it is said."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class VerboseTranscription(Body):
    """The body of a transcription whose `response_format` is `verbose_json`."""

    task: Literal["transcribe"]
    language: str
    duration: float
    text: str
    segments: list[TranscriptionSegment]
    usage: DurationUsage


def verbose(text: str, seconds: float, *, language: str | None, temperature: float) -> VerboseTranscription:
    """Return a transcript in OpenAI's verbose form.

    The language is the one that the client named, since none is detected. `avg_logprob` and `no_speech_prob` are not
    computed, and 0, at which clients with a threshold keep the segment.
    """
    segment = TranscriptionSegment(
        id=0, seek=0, start=0.0, end=seconds, text=text, tokens=[], temperature=temperature,
        avg_logprob=0.0, compression_ratio=compression_ratio(text), no_speech_prob=0.0,
    )  # fmt: skip
    return VerboseTranscription(
        task="transcribe", language=language or "unknown", duration=seconds, text=text,
        segments=[segment], usage=DurationUsage(type="duration", seconds=seconds),
    )  # fmt: skip


def compression_ratio(text: str) -> float:
    """Return the number of bytes of a text divided by that of its zlib compression, by which loops are found."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def srt(text: str, seconds: float) -> str:
    """Return a transcript as SubRip subtitles."""
    return f"1\n{_time(0, ',')} --> {_time(seconds, ',')}\n{text}\n\n"


def vtt(text: str, seconds: float) -> str:
    """Return a transcript as WebVTT subtitles."""
    return f"WEBVTT\n\n{_time(0, '.')} --> {_time(seconds, '.')}\n{text}\n\n"


def _time(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
