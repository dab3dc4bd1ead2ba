"""Recordings that clients send, decoded in memory by the reader of all commands."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from torch import Tensor

from omnikit.api import Omni
from omnikit.audio.io import MAX_SECONDS, waveform
from omnikit.audio.reader import read
from omnikit.generate import Question
from omnikit.serve.serving import Serving, limits_of


@dataclass(frozen=True)
class SentRecording:
    """A decoded recording: its waveform [N] at the encoder's sample rate, and its length in seconds."""

    wav: Tensor
    seconds: float

    def question(self, omni: Omni) -> Question:
        """Return the recording as a question to a system.

        Raises:
            ValueError: the encoder takes no recording of this length.
        """
        return omni.spoken_question(self.wav)


def decode(data: bytes, name: str, serving: Serving, omni: Omni) -> SentRecording:
    """Decode the bytes of an audio file; nothing of it is logged or written to disk.

    Args:
        data: content of the file.
        name: name of the file in messages.
        serving: systems and settings of the server.
        omni: system that the recording is for.

    Raises:
        ValueError: not audio, empty, damaged, or longer than the server's settings or the encoder allow.
    """
    sound = read(data, name, min(MAX_SECONDS, limits_of(omni, serving.settings).max_audio_seconds))
    return SentRecording(waveform(sound, omni.model.encoder.sample_rate), sound.seconds)


def from_base64(text: str, name: str) -> bytes:
    """Return the bytes that base64 text stands for.

    Raises:
        ValueError: it is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name}: not base64 ({error})") from None
