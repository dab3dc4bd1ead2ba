"""Read and write audio files as waveforms."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from omnikit.audio.reader import NOTES, Sound, Source, read
from omnikit.files import check_writable, write_bytes

logger = logging.getLogger(__name__)
MAX_SECONDS = 30.0
"""Maximum length of a question in seconds; the published system's encoder takes no more."""
LONGEST_NAME = 200  # bytes; file systems allow 255, and the extension has to fit


def name_of(audio: str | Path | Tensor) -> str:
    """Return the name of a recording, a file or a waveform, in error messages."""
    return "waveform" if isinstance(audio, Tensor) else str(audio)


def load_audio(path: str | Path, sample_rate: int, max_seconds: float | None = MAX_SECONDS) -> Tensor:
    """Read an audio file as a mono waveform [N], float32 in -1..1, mixed down and resampled where necessary.

    Notes on the recording (`omnikit.audio.reader.NOTES`), such as on cancelling channels, are logged as warnings.

    Args:
        path: audio file in any format that libsndfile reads (wav, flac, ogg, mp3 ..).
        sample_rate: sample rate of the returned waveform in Hz.
        max_seconds: maximum length; longer files are refused. None = `omnikit.audio.reader.LONGEST`.

    Raises:
        Unusable: see `omnikit.audio.reader.read`.
    """
    return load_source(path, str(path), sample_rate, max_seconds)


def load_source(source: Source, name: str, sample_rate: int, max_seconds: float | None = None) -> Tensor:
    """Read an audio file, given by its path or its bytes, like `load_audio`; messages call it `name`."""
    sound = read(source, name, max_seconds)
    for note in sound.notes:
        logger.warning("%s: %s (%s)", name, note, NOTES[note])
    return waveform(sound, sample_rate)


def waveform(sound: Sound, sample_rate: int) -> Tensor:
    """Return the waveform [N] of a decoded recording, float32, resampled to `sample_rate` Hz; it is never empty."""
    mono = sound.mono
    if sound.rate != sample_rate:
        resampled = soxr.resample(mono, sound.rate, sample_rate)
        mono = resampled if len(resampled) else mono[:1]
    return torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32))


def save_audio(path: str | Path, wav: Tensor, sample_rate: int) -> None:
    """Write a waveform [N] or [1, N] in -1..1 to an audio file.

    The file's extension names the format; PCM formats get 16 bits per sample.

    The file is whole or absent, see `omnikit.files.whole_file`.

    Raises:
        ValueError: see `check_target`; or the disk is full.
    """
    check_target(path)
    samples = wav.detach().to("cpu", torch.float32).reshape(-1).clamp(-1, 1).numpy()
    buffer = io.BytesIO()  # libsndfile does not report every failed write to a disk
    soundfile.write(buffer, samples, sample_rate, format=_format(path))
    write_bytes(path, buffer.getbuffer())


def wav_name(name: str) -> str:
    """Return the file name for the generated speech of a manifest entry: its id and `.wav`.

    Characters that file systems do not allow become `%` and two hexadecimal digits; an id that is too long becomes its
    SHA-256.
    """
    safe = re.sub(r'[%/\\:*?"<>|\x00-\x1f]', lambda found: f"%{ord(found[0]):02X}", name)
    if len(os.fsencode(safe)) > LONGEST_NAME:
        safe = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f"{safe}.wav"


def check_target(path: str | Path) -> None:
    """Refuse an output path that `save_audio` could not write, before anything is computed.

    Raises:
        ValueError: the folder does not exist, libsndfile does not write the extension's format, or the path is not
            writable.
    """
    if _format(path) not in soundfile.available_formats():
        ending = Path(path).suffix or "a file without an ending"
        raise ValueError(f"{path}: cannot write {ending} (choices: .wav, .flac, .ogg)")
    if not Path(path).parent.is_dir():
        raise ValueError(f"{path}: no such folder: {Path(path).parent}")
    check_writable(path)


def _format(path: str | Path) -> str:
    return Path(path).suffix[1:].upper()
