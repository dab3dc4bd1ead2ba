"""When each word of a recording is spoken: by a recogniser, or estimated from the text that was spoken."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import soxr

from omnikit.encoders.whisper_weights import read_whisper
from omnikit.evaluate.asr_judges import SILENT
from omnikit.evaluate.baseline_recognisers import SAMPLE_RATE, WHISPER

TEXT = "text"
"""Name of the word times that are estimated from the text, see `estimated_words`."""
STORED = "stored"
"""Value of `--word_times` for `output.json` files that are there, such as those of the suite's own recogniser."""


@dataclass(frozen=True)
class Word:
    """A word and the seconds at which it begins and ends."""

    text: str
    begin: float
    end: float


@dataclass(frozen=True)
class Stretch:
    """A part of an answer that was played without a break; all times are in seconds."""

    source: float
    """Time in the answer at which it begins."""
    begin: float
    """Time in the output at which it begins."""
    length: float


class WordTimer(Protocol):
    """A recogniser that says when each word is spoken."""

    def words(self, wav: np.ndarray, sample_rate: int) -> list[Word]:
        """Return the words of a waveform [N] in -1..1 at a rate in Hz, in their order; none for silence."""


class WhisperWords:
    """A `WordTimer` with openai-whisper's word timestamps, which align its cross-attention with the words.

    Args:
        weights: name of an openai-whisper model, or a `.pt` file.
        device: device that it runs on.
        language: language that is spoken, as openai-whisper names it.
    """

    def __init__(self, weights: str, device: str = "cpu", language: str = "en"):
        self.language = language
        self.model = read_whisper(weights).to(device).eval()
        self.fp16 = self.model.device.type == "cuda"

    def words(self, wav: np.ndarray, sample_rate: int) -> list[Word]:
        """Transcribe a waveform greedily; see `WordTimer`."""
        samples = np.asarray(wav, dtype=np.float32)
        if np.abs(samples).max(initial=0) < SILENT:
            return []
        if sample_rate != SAMPLE_RATE:
            samples = soxr.resample(samples, sample_rate, SAMPLE_RATE)
        options = {"language": self.language, "temperature": 0.0, "fp16": self.fp16, "word_timestamps": True}
        found = self.model.transcribe(samples, verbose=None, **options)["segments"]
        words = [each for segment in found for each in segment.get("words", ())]
        return [Word(each["word"].strip(), float(each["start"]), float(each["end"])) for each in words]


def check_word_times(name: str) -> None:
    """Refuse an unknown way of finding word times.

    Raises:
        ValueError: the message lists the choices.
    """
    if name not in (TEXT, STORED, *WHISPER):
        choices = ", ".join((TEXT, STORED, *WHISPER))
        raise ValueError(f"--word_times {name}: no such word times (choices: {choices})")


def open_words(name: str, weights: str | None = None, device: str = "cpu") -> WordTimer:
    """Return the recogniser of a name, such as `whisper_small`.

    Args:
        name: name of the recogniser.
        weights: a `.pt` file of openai-whisper instead of the published weights.
        device: device that it runs on.

    Raises:
        ValueError: the weights cannot be loaded.
    """
    return WhisperWords(weights or WHISPER[name], device)


def estimated_words(text: str, wav: np.ndarray, sample_rate: int) -> list[Word]:
    """Estimate the times of the words of a text that a waveform [N] in -1..1 speaks; none for silence.

    The time from the first to the last audible sample is divided among the words by their numbers of characters. That
    is right at both ends, and only about right in between.

    Args:
        text: the spoken text.
        wav: the waveform.
        sample_rate: its sample rate in Hz.
    """
    audible = np.flatnonzero(np.abs(wav) >= SILENT)
    words = text.split()
    if not len(audible) or not words:
        return []
    begin, end = audible[0] / sample_rate, (audible[-1] + 1) / sample_rate
    shares = np.cumsum([0, *(len(word) for word in words)]) / sum(map(len, words))
    times = (begin + shares * (end - begin)).tolist()
    return [Word(word, *span) for word, span in zip(words, itertools.pairwise(times), strict=True)]


def played_words(words: Iterable[Word], stretches: Sequence[Stretch]) -> list[Word]:
    """Return the words of an answer of which at least half was played, on the clock of the output.

    Args:
        words: words on the clock of the answer.
        stretches: parts of the answer that were played.
    """
    found = []
    for word in words:
        parts = [
            (max(word.begin, part.source), min(word.end, part.source + part.length), part.begin - part.source)
            for part in stretches
        ]
        parts = [(begin, end, shift) for begin, end, shift in parts if begin < end]
        if parts and 2 * sum(end - begin for begin, end, _ in parts) >= word.end - word.begin:
            found.append(Word(word.text, parts[0][0] + parts[0][2], parts[-1][1] + parts[-1][2]))
    return found


def words_after(words: Iterable[Word], second: float) -> list[Word]:
    """Return the words of which at least half comes after a second, cut to what comes after it."""
    kept = [word for word in words if word.begin + word.end >= 2 * second and word.end > second]
    return [Word(word.text, max(word.begin, second), word.end) for word in kept]
