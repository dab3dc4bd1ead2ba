"""Qwen2-Audio's encoder (Chu et al. 2024, arXiv 2407.10759): Whisper large-v3's, trained on, at half the frame rate."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from omnikit.encoders.log_mel import HOP_LENGTH, SAMPLE_RATE
from omnikit.encoders.whisper import FRAME_SAMPLES, WhisperEncoder
from omnikit.encoders.whisper_network import CONV_STRIDE

POOL = 2


class Qwen2AudioEncoder(WhisperEncoder):
    """Whisper's encoder with an average over two neighbouring features before the last norm.

    The arguments are those of `WhisperEncoder`. With `pad_to_30s` the log-mel spectrogram is that of 30 s, as
    published; the blocks see nothing behind a recording's end, which is as published, too.
    """

    frame_samples = POOL * FRAME_SAMPLES
    frame_rate = SAMPLE_RATE / frame_samples
    families = ("qwen2_audio", "qwen2_audio_encoder")

    def num_frames(self, samples: int) -> int:
        """See `AudioEncoder.num_frames`."""
        self._check(samples, samples)
        return -(-samples // FRAME_SAMPLES if self.pad_to_30s else -(samples // HOP_LENGTH) // CONV_STRIDE) // POOL

    def _padded(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder.convolve(*self.mel_of_30s(wav, lengths))
        frames = -(-lengths // FRAME_SAMPLES)
        return self._pooled(x[:, : int(frames.max())], frames)

    def encode_mel(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel [B, n_mels, T] with lengths [B] in frames of 10 ms -> features [B, ceil(T / 2) // 2, D], lengths."""
        return self._pooled(self.encoder.convolve(mel, lengths), -(-lengths // CONV_STRIDE))

    def _pooled(self, x: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder.transform(x, frames).transpose(1, 2)
        return self.encoder.ln_post(F.avg_pool1d(x, POOL).transpose(1, 2)), frames // POOL
