"""Audio files in and out."""

from __future__ import annotations

import hashlib
import io
import os
import re
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from omnikit.files import check_writable, write_bytes

MAX_SECONDS = 30.0
"""What a question may last; the published system's encoder reads no more."""
LONGEST_NAME = 200  # bytes; file systems take 255, and an ending has to fit


def load_audio(path: str | Path, sample_rate: int, max_seconds: float | None = MAX_SECONDS) -> Tensor:
    """A sound file as a mono waveform [N], float32 in -1..1; channels are mixed, another rate is resampled.

    Args:
        path: any format that libsndfile reads (wav, flac, ogg, mp3 ..).
        sample_rate: of the result, Hz.
        max_seconds: longer files are refused; `None` = no limit.

    Raises:
        ValueError: no such file, not audio, empty, too long, or with samples that are no numbers.
    """
    return _to_mono(*_read(Path(path), max_seconds), sample_rate, str(path))


def decode_audio(data: bytes, sample_rate: int, name: str) -> Tensor:
    """A sound file's bytes as a mono waveform [N]; `name` is what errors call it.

    Raises:
        ValueError: not audio, empty, or with samples that are no numbers.
    """
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{name}: not audio that can be read ({error.error_string})") from None
    return _to_mono(samples, rate, sample_rate, name)


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


def _to_mono(samples: np.ndarray, rate: int, sample_rate: int, name: str) -> Tensor:
    """Samples [N, channels] -> waveform [N] at another rate."""
    mono = samples.mean(axis=1)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate)
    if not mono.size:
        raise ValueError(f"{name}: holds no audio (0 samples)")
    if not np.isfinite(mono).all():
        raise ValueError(f"{name}: holds samples that are no numbers (NaN or infinite)")
    return torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32))


def _read(path: Path, max_seconds: float | None) -> tuple[np.ndarray, int]:
    """Samples [N, channels] and their rate."""
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder, not a sound file' if path.is_dir() else 'no such file'}")
    if not path.stat().st_size:
        raise ValueError(f"{path}: empty file")
    try:
        with soundfile.SoundFile(path) as file:
            seconds = file.frames / file.samplerate
            if max_seconds is not None and seconds > max_seconds:
                raise ValueError(f"{path}: {seconds:.1f} s long, the limit is {max_seconds:g} s")
            return file.read(dtype="float32", always_2d=True), file.samplerate
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: not an audio file that can be read ({error.error_string})") from None
