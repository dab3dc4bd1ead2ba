"""Whisper's log-mel spectrogram (Radford et al. 2022, arXiv 2212.04356, section 2.2).

Letters: B batch, N samples, T frames of 10 ms, M mel bands, F frequency bins.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from omnikit.interfaces import lengths_to_mask

SAMPLE_RATE = 16000
N_FFT, HOP_LENGTH = 400, 160
"""Length and hop of the analysis window in samples: 25 ms and 10 ms."""
MEL_BANDS = (80, 128)
"""Numbers of mel bands that published Whisper models have."""
_LINEAR_UP_TO = 1000.0  # Hz; Slaney's mel scale is linear below and logarithmic above
_MELS_PER_HZ = 3 / 200
_MELS_PER_E = 27 / math.log(6.4)  # 27 mels for each factor of 6.4


def log_mel(wav: Tensor, lengths: Tensor, n_mels: int) -> tuple[Tensor, Tensor]:
    """Compute Whisper's log-mel spectrogram of each waveform of a batch independently of the others.

    openai-whisper's own function reflects at the end of the padded batch and clamps by the maximum of the whole batch,
    so a waveform's spectrogram would depend on the rest of the batch.

    Args:
        wav: waveforms [B, N] in -1..1.
        lengths: lengths of the waveforms [B] in samples.
        n_mels: M, number of mel bands.

    Returns:
        Log-mel spectrograms [B, M, T], zero behind each waveform's end, and their lengths [B] in frames of 10 ms.
    """
    frames = lengths // HOP_LENGTH
    window = torch.hann_window(N_FFT, device=wav.device)
    stft = torch.stft(_reflected(wav, lengths), N_FFT, HOP_LENGTH, window=window, center=False, return_complex=True)
    power = stft[..., : int(frames.max())].abs() ** 2
    with torch.autocast(wav.device.type, enabled=False):  # a spectrogram in bfloat16 is too coarse
        mel = (torch.from_numpy(mel_filters(n_mels)).to(wav.device) @ power).clamp(min=1e-10).log10()
    inside = lengths_to_mask(frames, mel.shape[-1])[:, None]
    loudest = mel.masked_fill(~inside, -torch.inf).amax(dim=(1, 2), keepdim=True)
    return ((torch.maximum(mel, loudest - 8.0) + 4.0) / 4.0).masked_fill(~inside, 0.0), frames


def _reflected(wav: Tensor, lengths: Tensor) -> Tensor:
    """Pad waveforms [B, N] to [B, N + N_FFT]: half a window on each side, by reflection at each waveform's own ends."""
    half, last = N_FFT // 2, lengths[:, None] - 1
    position = torch.arange(-half, wav.shape[1] + half, device=wav.device)[None].abs()
    position = torch.where(position > last, 2 * last - position, position)
    return wav.gather(1, position.clamp(min=0).minimum(last))


@functools.cache
def mel_filters(n_mels: int) -> np.ndarray:
    """Return triangular filters of equal area on Slaney's mel scale, float32 [M, N_FFT / 2 + 1].

    The bands are those of M. Slaney ("Auditory Toolbox", 1998), from 0 Hz to half the sample rate. The rounding follows
    the table that openai-whisper ships (computed with librosa), so that both are equal bit for bit.
    """
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(SAMPLE_RATE / 2), n_mels + 2))[:, None]
    bins = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE)
    rising = (bins - edges[:-2]) / np.diff(edges[:-1], axis=0)
    falling = (edges[2:] - bins) / np.diff(edges[1:], axis=0)
    triangles = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    return (triangles * (2 / (edges[2:] - edges[:-2]))).astype(np.float32)


def _hz_to_mel(hz: float) -> float:
    """Convert a frequency in Hz, at least `_LINEAR_UP_TO`, to Slaney's mel scale."""
    return _LINEAR_UP_TO * _MELS_PER_HZ + math.log(hz / _LINEAR_UP_TO) * _MELS_PER_E


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    knee = _LINEAR_UP_TO * _MELS_PER_HZ
    return np.where(mel < knee, mel / _MELS_PER_HZ, _LINEAR_UP_TO * np.exp((mel - knee) / _MELS_PER_E))
