"""Speech synthesis with the shared library of espeak-ng from the package `espeakng_loader`; nothing is downloaded.

espeak-ng stores voice and parameters in global state, so there is one synthesiser per process: it must not be used by
several threads, or with two voices within one call. Processes are independent of each other.
"""

from __future__ import annotations

import ctypes
import difflib
from functools import lru_cache
from pathlib import Path

import numpy as np

SYNCHRONOUS = 2  # espeak_Initialize: espeak_Synth returns when the callback has received all samples
UTF8 = 1
RATE, PITCH, WORD_GAP = 1, 3, 7  # espeak_PARAMETER
TRIM_THRESHOLD = 0.01  # share of the peak; silence of espeak-ng is zero but for rounding
MARGIN_SECONDS = 0.05  # silence around the speech
STRESS_AND_PAUSES = "',%=_:|;!-"  # marks in espeak-ng's phoneme mnemonics that are not sounds

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class _Engine:
    """The loaded espeak-ng library, with its sample rate in Hz and the samples of the utterance in synthesis."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise ValueError("espeak-ng is missing: pip install espeakng-loader") from error
        self.data = Path(espeakng_loader.get_data_path())
        self.lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate = self.lib.espeak_Initialize(SYNCHRONOUS, 0, str(self.data).encode(), 0)
        if self.rate <= 0:
            raise ValueError(f"espeak-ng does not start with the data in {self.data}")
        self.pieces: list[np.ndarray] = []
        self.callback = _Callback(self._receive)  # a reference, since the library holds only a pointer
        self.lib.espeak_SetSynthCallback(self.callback)
        self.lib.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.voice: str | None = None

    def _receive(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            self.pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    def set_voice(self, voice: str) -> None:
        if voice == self.voice:
            return
        file, plus, variant = check_voice(voice), *voice.partition("+")[1:]
        if self.lib.espeak_SetVoiceByName(f"{file}{plus}{variant}".encode()) != 0:
            raise ValueError(f"voice {voice!r} is refused by espeak-ng")
        self.voice = voice

    def speak(self, text: str) -> np.ndarray:
        """Return the synthesized samples [N] (int16) of a text at `self.rate`.

        Raises:
            ValueError: espeak-ng cannot synthesize the text.
        """
        self.pieces.clear()
        self.lib.espeak_ng_SetRandSeed(1)  # breath noise does not depend on previous calls
        data = text.encode()
        status = self.lib.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, UTF8, None, None)
        if status != 0:
            raise ValueError(f"espeak-ng could not speak {text!r} (status {status})")
        return np.concatenate(self.pieces) if self.pieces else np.zeros(0, np.int16)


@lru_cache(maxsize=1)
def _engine() -> _Engine:
    return _Engine()


@lru_cache(maxsize=1)
def languages() -> dict[str, str]:
    """Return the language names that can precede the `+` of a voice, each with its file.

    espeak-ng is given the file, since it does not accept all of the names.
    """
    folder = _engine().data / "lang"
    found: dict[str, str] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for name in (line.split()[1].lower() for line in lines if line.startswith("language ") and line.split()[1:]):
            found.setdefault(name, path.relative_to(folder).as_posix())
    return found


@lru_cache(maxsize=1)
def variants() -> tuple[str, ...]:
    """Return the variant names that can follow the `+` of a voice."""
    return tuple(sorted(path.name for path in (_engine().data / "voices" / "!v").iterdir()))


def check_voice(voice: str) -> str:
    """Return the language file of a voice after checking its language and variant.

    Raises:
        ValueError: espeak-ng lacks the language or the variant; the library itself would silently use another.
    """
    language, plus, variant = voice.partition("+")
    _check_known(voice, "language", language.lower(), tuple(languages()))
    if plus:
        _check_known(voice, "variant", variant, variants())
    return languages()[language.lower()]


def _check_known(voice: str, kind: str, name: str, choices: tuple[str, ...]) -> None:
    if name not in choices:
        near = difflib.get_close_matches(name, choices, n=6, cutoff=0.0)
        raise ValueError(f"voice {voice!r}: unknown {kind} {name!r}; nearest choices: {', '.join(near)}")


def synthesize(
    text: str,
    voice: str = "en-us",
    *,
    speed: int = 160,
    pitch: int = 50,
    word_gap: int = 0,
    sample_rate: int | None = None,
) -> tuple[np.ndarray, int]:
    """Return the speech that espeak-ng synthesizes for a text.

    Args:
        text: text to synthesize.
        voice: a language and optionally a variant, such as `en-us+m3`.
        speed: words per minute, 80..450.
        pitch: pitch in espeak-ng's units, 0..99.
        word_gap: pause between words in units of 10 ms at normal speed.
        sample_rate: sample rate of the result in Hz; None = espeak-ng's own.

    Returns:
        The waveform [N], float32 in -1..1, with `MARGIN_SECONDS` of silence around the speech, and its sample rate in
        Hz.

    Raises:
        ValueError: an unknown voice, a value out of range, or a text without speech.
    """
    _check_range("speed", speed, 80, 450)
    _check_range("pitch", pitch, 0, 99)
    engine = _engine()
    engine.set_voice(voice)
    for parameter, value in ((RATE, speed), (PITCH, pitch), (WORD_GAP, word_gap)):
        engine.lib.espeak_SetParameter(parameter, value, 0)
    wav = trim(engine.speak(text).astype(np.float32) / 32768.0, engine.rate)
    if not len(wav):
        raise ValueError(f"espeak-ng generates no speech for the text {text!r}")
    if sample_rate is None or sample_rate == engine.rate:
        return wav, engine.rate
    import soxr

    return soxr.resample(wav, engine.rate, sample_rate).astype(np.float32), sample_rate


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} {value} is outside {low}..{high}")


def trim(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return a waveform [N] with exactly `MARGIN_SECONDS` of silence at both ends, by trimming or adding zeros."""
    loud = np.flatnonzero(np.abs(wav) > TRIM_THRESHOLD * np.abs(wav).max(initial=1e-9))
    if not len(loud):
        return wav[:0]
    margin = round(MARGIN_SECONDS * sample_rate)
    padded = np.pad(wav, margin)
    return padded[loud[0] : loud[-1] + 1 + 2 * margin]


def phonemes(text: str, voice: str = "en-us") -> list[str]:
    """Return the phonemes of a text in espeak-ng's mnemonics, without stress marks and word boundaries."""
    engine = _engine()
    engine.set_voice(voice)
    position = ctypes.c_char_p(text.encode())
    found: list[str] = []
    while position.value is not None:  # one clause per call: the library advances the pointer, at the end to null
        clause = engine.lib.espeak_TextToPhonemes(ctypes.byref(position), UTF8, ord("_") << 8)
        found += [_bare(sound) for word in clause.decode().split() for sound in word.split("_")]
    return [sound for sound in found if sound]


def _bare(sound: str) -> str:
    """Return a phoneme mnemonic without stress and pause marks at its ends; a final length mark (`i:`) remains."""
    return sound.lstrip(STRESS_AND_PAUSES).rstrip("',%=_|;!-")
