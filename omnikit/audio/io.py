"""Audio files in and out."""

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
"""What a question may last; the published system's encoder reads no more."""
LONGEST_NAME = 200  # bytes; file systems take 255, and an ending has to fit


def load_audio(path: str | Path, sample_rate: int, max_seconds: float | None = MAX_SECONDS) -> Tensor:
    """Read a sound file as a mono waveform [N], float32 in -1..1; channels are mixed, another rate is resampled.

    What a user should know about it (`omnikit.audio.reader.NOTES`) is logged as a warning.

    Args:
        path: any format that libsndfile reads (wav, flac, ogg, mp3 ..).
        sample_rate: of the result, Hz.
        max_seconds: longer files are refused; None = `omnikit.audio.reader.LONGEST`.

    Raises:
        Unusable: see `omnikit.audio.reader.read`.
    """
    return load_source(path, str(path), sample_rate, max_seconds)


def load_source(source: Source, name: str, sample_rate: int, max_seconds: float | None = None) -> Tensor:
    """`load_audio` of a path or of the bytes of a sound file, which messages call `name`."""
    sound = read(source, name, max_seconds)
    for note in sound.notes:
        logger.warning("%s: %s (%s)", name, note, NOTES[note])
    return waveform(sound, sample_rate)


def waveform(sound: Sound, sample_rate: int) -> Tensor:
    """The waveform [N] of a decoded recording at another rate (Hz), float32; never empty."""
    mono = sound.mono
    if sound.rate != sample_rate:
        resampled = soxr.resample(mono, sound.rate, sample_rate)
        mono = resampled if len(resampled) else mono[:1]
    return torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32))


def save_audio(path: str | Path, wav: Tensor, sample_rate: int) -> None:
    """Write a waveform [N] or [1, N] in -1..1; the file's ending names the format, 16 bit where it has bits.

    The file is whole or absent, see `omnikit.files.whole_file`.

    Raises:
        ValueError: see `check_target`; or the disk is full.
    """
    check_target(path)
    samples = wav.detach().to("cpu", torch.float32).reshape(-1).clamp(-1, 1).numpy()
    buffer = io.BytesIO()  # libsndfile does not tell of every write that fails
    soundfile.write(buffer, samples, sample_rate, format=_format(path))
    write_bytes(path, buffer.getbuffer())


def wav_name(name: str) -> str:
    """The file of a row's speech: its id, what file systems do not take in it as `%` and two hexadecimal digits."""
    safe = re.sub(r'[%/\\:*?"<>|\x00-\x1f]', lambda found: f"%{ord(found[0]):02X}", name)
    if len(os.fsencode(safe)) > LONGEST_NAME:
        safe = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f"{safe}.wav"


def check_target(path: str | Path) -> None:
    """Refuse a file that `save_audio` could not write, before the work is done.

    Raises:
        ValueError: no such folder, an ending that libsndfile does not write, or a file that the system refuses.
    """
    if _format(path) not in soundfile.available_formats():
        ending = Path(path).suffix or "a file without an ending"
        raise ValueError(f"{path}: cannot write {ending} (choices: .wav, .flac, .ogg)")
    if not Path(path).parent.is_dir():
        raise ValueError(f"{path}: no such folder: {Path(path).parent}")
    check_writable(path)


def _format(path: str | Path) -> str:
    return Path(path).suffix[1:].upper()
