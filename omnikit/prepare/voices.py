"""Voices for speech synthesis: espeak-ng, and trained systems of this toolkit (which alone need torch).

A subclass of `Voice` in your own package is named with its module: `--voice my_package.my_module.MyVoice`.
"""

from __future__ import annotations

import inspect
import multiprocessing
import pydoc
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from omnikit.data.recording_check import encode_flac
from omnikit.errors import one_line
from omnikit.prepare.espeak import check_voice, synthesize

ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029")
"""English accents of espeak-ng that are easy to understand; the first one speaks the answers."""
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5")
"""Voice variants of espeak-ng among which the speakers of questions are chosen."""
SPEEDS, PITCHES = (140, 190), (30, 70)  # minimum and maximum in espeak-ng's units


class Voice(ABC):
    """Abstract base class of voices that synthesize speech from text.

    `open_voice` creates a subclass without arguments, or with those of `checkpoint` and `device` that the user gives.
    """

    sample_rate: int
    """Sample rate of the synthesized speech in Hz."""
    depends_on_history = False
    """Whether synthesized speech depends on what the process synthesized before; such a voice must be picklable."""
    depends_on: tuple[object, ...] = ()
    """Values that the synthesized speech depends on, such as a fingerprint of weights."""

    @abstractmethod
    def synthesize(self, text: str, seed: int | None = None, language: str = "") -> np.ndarray:
        """Return the synthesized speech of a text as a waveform [N], float32 in -1..1, at `sample_rate`.

        Args:
            seed: number that selects one of the voice's speakers; None = the speaker of answers.
            language: ISO 639-1 code of the text's language; "" = unknown.

        Raises:
            ValueError: the voice cannot synthesize the text.
        """


class EspeakVoice(Voice):
    """The voice of espeak-ng: one speaker for answers, and speakers of various accents and speeds for questions."""

    sample_rate = 22050
    depends_on_history = True

    def __init__(self) -> None:
        check_voice(ACCENTS[0])  # raises an error early if espeak-ng is missing

    def synthesize(self, text: str, seed: int | None = None, language: str = "") -> np.ndarray:
        accents = ACCENTS if language in ("", "en") else (language,)
        if seed is None:
            return synthesize(text, accents[0], sample_rate=self.sample_rate)[0]
        rng = random.Random(seed)
        voice = f"{rng.choice(accents)}+{rng.choice(VARIANTS)}"
        speed, pitch = rng.randint(*SPEEDS), rng.randint(*PITCHES)
        return synthesize(text, voice, speed=speed, pitch=pitch, sample_rate=self.sample_rate)[0]


class CheckpointVoice(Voice):
    """The voice of a trained system, which has a single speaker.

    Args:
        checkpoint: the system, see `omnikit.checkpoint.existing`; None = the mini system of the package.
        device: device for the system.
    """

    def __init__(self, checkpoint: str | None = None, device: str = "cpu"):
        from omnikit.api import load
        from omnikit.data.array_cache import fingerprint

        self.omni = load(checkpoint, device=device)
        self.sample_rate = self.omni.sample_rate
        self.depends_on = (fingerprint(self.omni.model),)

    def synthesize(self, text: str, seed: int | None = None, language: str = "") -> np.ndarray:
        wav = self.omni.speak(text).wav
        if not len(wav):
            raise ValueError(f"the system generates no speech for the text {text!r}")
        return wav.float().cpu().numpy()


VOICES = {"espeak": EspeakVoice, "checkpoint": CheckpointVoice}


def open_voice(name: str, **options: Any) -> Voice:
    """Return a new voice by its name in `VOICES`, or by the dotted name of a class.

    Args:
        options: arguments of the class, such as `checkpoint` and `device`.

    Raises:
        ValueError: there is no such voice, or it does not accept an option.
    """
    try:
        found = VOICES.get(name) or (pydoc.locate(name) if "." in name else None)
    except pydoc.ErrorDuringImport as error:
        raise ValueError(f"--voice {name}: {one_line(error.value)}") from None
    if not (isinstance(found, type) and issubclass(found, Voice)):
        choices = f"{', '.join(VOICES)}, or package.module.Class of a voice of one's own"
        raise ValueError(f"--voice {name}: no such voice (choices: {choices})")
    taken = inspect.signature(found).parameters
    unknown = [f"--{option} {value}" for option, value in options.items() if option not in taken]
    if unknown:
        raise ValueError(f"{unknown[0]}: the voice {name} does not take it")
    return found(**options)


@dataclass(frozen=True)
class SynthesisRequest:
    """A text to synthesize, its language, and the seed that selects the speaker; see `Voice.synthesize`."""

    text: str
    seed: int | None = None
    language: str = ""


@dataclass(frozen=True)
class SynthesizedSpeech:
    """Synthesized speech as the bytes of a FLAC file, and its length; no bytes if the voice refused the text."""

    data: bytes | None = None
    seconds: float = 0.0


def synthesize_all(voice: Voice, requests: Sequence[SynthesisRequest]) -> list[SynthesizedSpeech]:
    """Return the synthesized speech of each request, independently of what the process synthesized before.

    A voice that depends on its history runs in a new process.

    Raises:
        RuntimeError: the process of the voice ended without a result.
    """
    if not voice.depends_on_history:
        return _synthesize_here(voice, requests)
    # spawned, since a forked process would inherit the voice's history
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    fresh = context.Process(target=_send_synthesized, args=(sender, voice, requests), daemon=True)
    fresh.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        fresh.join()  # before its status is known
        raise RuntimeError(f"the process of the voice ended with status {fresh.exitcode}") from None
    finally:
        fresh.join()


def _send_synthesized(sender: Connection, voice: Voice, requests: Sequence[SynthesisRequest]) -> None:
    sender.send(_synthesize_here(voice, requests))


def _synthesize_here(voice: Voice, requests: Sequence[SynthesisRequest]) -> list[SynthesizedSpeech]:
    return [_flac(voice, request) for request in requests]


def _flac(voice: Voice, request: SynthesisRequest) -> SynthesizedSpeech:
    try:
        wav = voice.synthesize(request.text, request.seed, request.language)
    except ValueError:
        return SynthesizedSpeech()
    return SynthesizedSpeech(encode_flac(wav, voice.sample_rate), len(wav) / voice.sample_rate)
