"""Voices that say texts: espeak-ng, and the project's own trained systems. torch is imported by the latter alone.

A voice of one's own is a class like these, named with its module: `--voice my_package.my_module.MyVoice`.
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
"""Of espeak-ng, those that are easy to understand."""
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5")
SPEEDS, PITCHES = (140, 190), (30, 70)  # from .. to, espeak-ng's units


class Voice(ABC):
    """Built without arguments, or with `checkpoint` and `device` where these are given."""

    sample_rate: int
    """Hz"""
    depends_on_history = False
    """Whether what it says depends on what the process had it say before. Such a voice can be pickled."""
    depends_on: tuple[object, ...] = ()
    """What its speech depends on."""

    @abstractmethod
    def synthesize(self, text: str, seed: int | None = None, language: str = "") -> np.ndarray:
        """The waveform [N], float32 in -1..1.

        Args:
            seed: chooses among the speakers that it has; None = the one who gives the answers.
            language: ISO 639-1; "" = not known.

        Raises:
            ValueError: it cannot say the text.
        """


class EspeakVoice(Voice):
    """espeak-ng: answers in one voice, questions in many, at various speeds and pitches."""

    sample_rate = 22050
    depends_on_history = True

    def __init__(self) -> None:
        check_voice(ACCENTS[0])  # that espeak-ng is there at all

    def synthesize(self, text: str, seed: int | None = None, language: str = "") -> np.ndarray:
        accents = ACCENTS if language in ("", "en") else (language,)
        if seed is None:
            return synthesize(text, accents[0], sample_rate=self.sample_rate)[0]
        rng = random.Random(seed)
        voice = f"{rng.choice(accents)}+{rng.choice(VARIANTS)}"
        speed, pitch = rng.randint(*SPEEDS), rng.randint(*PITCHES)
        return synthesize(text, voice, speed=speed, pitch=pitch, sample_rate=self.sample_rate)[0]


class CheckpointVoice(Voice):
    """A trained system, which has one voice.

    Args:
        checkpoint: folder or hub id; None = the system of the package.
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
            raise ValueError(f"the system says nothing for the text {text!r}")
        return wav.float().cpu().numpy()


VOICES = {"espeak": EspeakVoice, "checkpoint": CheckpointVoice}


def open_voice(name: str, **options: Any) -> Voice:
    """A voice by its name in `VOICES`, or that of a class with its module.

    Raises:
        ValueError: there is none, or it does not take the options.
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
    """What is to be said."""

    text: str
    seed: int | None = None
    language: str = ""


@dataclass(frozen=True)
class SynthesizedSpeech:
    """A FLAC file's bytes and its length; no data where the voice could not say the text."""

    data: bytes | None = None
    seconds: float = 0.0


def synthesize_all(voice: Voice, requests: Sequence[SynthesisRequest]) -> list[SynthesizedSpeech]:
    """What the voice makes of texts, whatever it said before."""
    if not voice.depends_on_history:
        return _synthesize_here(voice, requests)
    # not forked: a child would have said before what its parent has
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
