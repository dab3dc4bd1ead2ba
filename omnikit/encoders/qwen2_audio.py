"""Qwen2-Audio's encoder (Chu et al. 2024, arXiv 2407.10759): Whisper large-v3's, fine-tuned, at half the frame rate."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from omnikit.encoders.log_mel import HOP_LENGTH, SAMPLE_RATE
from omnikit.encoders.whisper import FRAME_SAMPLES, WhisperEncoder
from omnikit.encoders.whisper_network import CONV_STRIDE

POOL = 2


class Qwen2AudioEncoder(WhisperEncoder):
    """Qwen2-Audio's encoder: Whisper's, with average pooling over two features before the last norm.

    The arguments are those of `WhisperEncoder`. With `pad_to_30s` the log-mel spectrogram spans 30 s, as published; the
    blocks do not attend to frames behind a recording's end, which is as published, too.
    """

    frame_samples = POOL * FRAME_SAMPLES
    frame_rate = SAMPLE_RATE / frame_samples
    families = ("qwen2_audio", "qwen2_audio_encoder")

    def num_frames(self, samples: int) -> int:
        """Return the number of features of a recording of N samples; see `AudioEncoder.num_frames`."""
        self._check(samples, samples)
        return -(-samples // FRAME_SAMPLES if self.pad_to_30s else -(samples // HOP_LENGTH) // CONV_STRIDE) // POOL

    def _padded(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder.convolve(*self.mel_of_30s(wav, lengths))
        frames = -(-lengths // FRAME_SAMPLES)
        return self._pooled(x[:, : int(frames.max())], frames)

    def encode_mel(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode log-mel spectrograms [B, n_mels, T] with lengths [B] in frames of 10 ms.

        Returns:
            Features [B, ceil(T / 2) // 2, D] and their lengths [B].
        """
        return self._pooled(self.encoder.convolve(mel, lengths), -(-lengths // CONV_STRIDE))

    def _pooled(self, x: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder.transform(x, frames).transpose(1, 2)
        return self.encoder.ln_post(F.avg_pool1d(x, POOL).transpose(1, 2)), frames // POOL
