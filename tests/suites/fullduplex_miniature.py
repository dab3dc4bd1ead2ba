"""Ten recordings in the layout of Full-Duplex-Bench v1, two of each set; the shipped system knows the questions."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import soundfile

from tests.suites.spoken import spoken

RATE = 16000
AUDIBLE = 0.01


def speech(text: str, number: int = 0) -> np.ndarray:
    """Return samples [n] of a text without the silence before and after it."""
    wav, rate = soundfile.read(io.BytesIO(spoken(text, number)), dtype="float32")
    assert rate == RATE
    audible = np.flatnonzero(np.abs(wav) >= AUDIBLE)
    return wav[audible[0] : audible[-1] + 1]


def silence(seconds: float) -> np.ndarray:
    """Return samples [n] of silence."""
    return np.zeros(round(seconds * RATE), np.float32)


def write(folder: Path) -> Path:
    """Write the miniature to a folder and return it."""
    for number, text in enumerate(("what is the capital of france", "what color is the sky"), 1):
        wav = speech(text, number)
        end = 0.3 + len(wav) / RATE
        taken = {"text": "[TURN-TAKING]", "timestamp": [end, end + 0.4]}
        _write(folder / "candor_turn_taking" / str(number), [silence(0.3), wav, silence(2.5)], turn_taking=[taken])
    pauses = [
        ("candor_pause_handling", 1, "what is", "the capital of france", 0.3),
        ("candor_pause_handling", 2, "what is", "two plus three", 0.4),
        ("synthetic_pause_handling", 1, "what color", "is the sky", 0.35),
        ("synthetic_pause_handling", 2, "what is the capital of france", "and of italy", 2.5),
    ]
    for name, number, before, after, seconds in pauses:
        first, second = speech(before, number), speech(after, number)
        pause = {"text": "[PAUSE]", "timestamp": [len(first) / RATE, len(first) / RATE + seconds]}
        _write(folder / name / str(number), [first, silence(seconds), second], pause=[pause])
    for number in (1, 2):
        told = [speech(text, number) for text in ("the sky is blue", "two plus three is five", "snow is white")]
        _write(folder / "icc_backchannel" / str(number), [told[0], silence(0.2), told[1], silence(0.7), told[2]])
    interruptions = [
        ("what is the capital of france", "what color is the sky"),
        ("what is two plus three", "what is the capital of italy"),
    ]
    for number, (context, interrupt) in enumerate(interruptions, 1):
        first, second = speech(context, number), speech(interrupt, number)
        begin = len(first) / RATE + 1.0
        spans = {"context": context, "interrupt": interrupt, "timestamp": [begin, begin + len(second) / RATE]}
        place = folder / "synthetic_user_interruption" / str(number)
        _write(place, [first, silence(1.0), second, silence(2.5)], interrupt=[spans])
        soundfile.write(place / "context.wav", first, RATE)
        soundfile.write(place / "interrupt.wav", second, RATE)
    return folder


def _write(folder: Path, parts: list[np.ndarray], **annotation: list[dict]) -> None:
    folder.mkdir(parents=True)
    soundfile.write(folder / "input.wav", np.concatenate(parts), RATE)
    for name, content in annotation.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
