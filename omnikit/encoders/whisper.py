"""Whisper's audio encoder (Radford et al. 2022, arXiv 2212.04356), with or without the published padding to 30 s."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from omnikit.encoders.log_mel import HOP_LENGTH, MEL_BANDS, SAMPLE_RATE, log_mel
from omnikit.encoders.whisper_network import CONV_STRIDE, WhisperNetwork
from omnikit.encoders.whisper_transformers_weights import read_transformers
from omnikit.encoders.whisper_weights import is_published, read_encoder
from omnikit.hub import holds_transformers
from omnikit.interfaces import AudioEncoder, lengths_to_mask
from omnikit.part_sizes import PUBLISHED, sized
from omnikit.public_weights import located
from omnikit.size_limits import check_count

FRAME_SAMPLES = HOP_LENGTH * CONV_STRIDE
WINDOW_SAMPLES = 30 * SAMPLE_RATE  # length to which the published encoder pads every input
TINY = {"width": 16, "heads": 2, "layers": 2}


class WhisperEncoder(AudioEncoder):
    """Whisper's audio encoder, which takes waveforms and computes 50 features per second.

    Args:
        n_mels: number of mel bands, 80 or 128.
        n_ctx: maximum length of the input in frames of 20 ms; 1500 as published.
        width: D, width of the features.
        heads: number of attention heads.
        layers: number of transformer blocks.
        pad_to_30s: whether, as published, every input is padded with silence to 30 s and the features are truncated to
            `int(ms / 20) + 1` frames. Otherwise nothing is padded, which is many times cheaper, and padding inside a
            batch is masked out.
        weights: see `Part`; or a `.pt` file of openai-whisper, or the name of one (`tiny`, `small`, `large-v3` ..); or
            a folder or hub id in the format of transformers.
        size: `published`, or `tiny` for few and narrow layers, see `omnikit.part_sizes`.

    Raises:
        ValueError: an option has a value that the network cannot have, or the size is unknown.
    """

    frame_samples = FRAME_SAMPLES
    frame_rate = SAMPLE_RATE / FRAME_SAMPLES
    sample_rate = SAMPLE_RATE
    families: tuple[str, ...] = ("whisper",)
    """Values of `model_type` of transformers checkpoints whose weights fit this encoder."""

    def __init__(
        self,
        *,
        n_mels: int,
        n_ctx: int,
        width: int,
        heads: int,
        layers: int,
        pad_to_30s: bool = False,
        weights: str | None = None,
        size: str = PUBLISHED,
    ):
        super().__init__()
        width, heads, layers = sized({"width": width, "heads": heads, "layers": layers}, TINY, size).values()
        if n_mels not in MEL_BANDS:
            raise ValueError(f"n_mels {n_mels}: whisper has filters for {' and '.join(map(str, MEL_BANDS))} only")
        if width % (2 * heads):
            raise ValueError(f"--encoder.width {width}: must be a multiple of twice the number of heads ({heads})")
        if pad_to_30s and n_ctx * FRAME_SAMPLES != WINDOW_SAMPLES:
            raise ValueError(f"n_ctx {n_ctx}: padding to 30 s needs {WINDOW_SAMPLES // FRAME_SAMPLES}")
        self.n_mels, self.n_ctx, self.dim = n_mels, n_ctx, width
        self.max_seconds = n_ctx * FRAME_SAMPLES / SAMPLE_RATE
        self.pad_to_30s, self.weights = pad_to_30s, weights
        check_count("encoder.layers", layers)
        self.encoder = WhisperNetwork(n_mels, n_ctx, width, heads, layers)

    def load_weights(self) -> None:
        """Read Whisper encoder weights from safetensors, or from the format of openai-whisper or `transformers`.

        Raises:
            ValueError: the weights cannot be read or do not fit.
        """
        weights = located(self.weights)
        if weights is not None and is_published(weights):
            read_encoder(weights, self.encoder)
        elif weights is not None and holds_transformers(weights):
            read_transformers(weights, self.encoder, self.families)
        else:
            super().load_weights()

    def forward(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode waveforms [B, N] with lengths [B] in samples as features [B, T, D]; see `AudioEncoder.forward`.

        Raises:
            ValueError: a recording is shorter than one frame or longer than `n_ctx` frames of 20 ms.
        """
        self._check(int(lengths.min()), int(lengths.max()))
        return self._padded(wav, lengths) if self.pad_to_30s else self.encode_mel(*log_mel(wav, lengths, self.n_mels))

    def num_frames(self, samples: int) -> int:
        """Return the number of features of a recording of N samples; see `AudioEncoder.num_frames`."""
        self._check(samples, samples)
        if self.pad_to_30s:
            return min(samples // FRAME_SAMPLES + 1, self.n_ctx)
        return -(-(samples // HOP_LENGTH) // CONV_STRIDE)

    def _check(self, shortest: int, longest: int) -> None:
        limit = self.n_ctx * FRAME_SAMPLES
        if shortest < self.frame_samples:
            raise ValueError(
                f"a recording of {shortest} samples is shorter than one frame ({self.frame_samples} samples)"
            )
        if longest > limit:
            seconds = longest / SAMPLE_RATE
            raise ValueError(f"a recording of {seconds:.1f} s is longer than the encoder's {self.max_seconds:g} s")

    def _padded(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = lengths.new_tensor([self.num_frames(samples) for samples in lengths.tolist()])
        features, _ = self.encoder(*self.mel_of_30s(wav, lengths))
        return features[:, : int(frames.max())], frames

    def mel_of_30s(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Pad waveforms [B, N] with lengths [B] in samples to 30 s with silence and compute their log-mel spectrograms.

        Returns:
            Log-mel spectrograms [B, n_mels, 3000] and their lengths [B], 3000 frames of 10 ms each.
        """
        wav = wav * lengths_to_mask(lengths, wav.shape[1])
        filled = F.pad(wav, (0, WINDOW_SAMPLES - wav.shape[1]))
        return log_mel(filled, torch.full_like(lengths, WINDOW_SAMPLES), self.n_mels)

    def encode_mel(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode log-mel spectrograms [B, n_mels, T] with lengths [B] in frames of 10 ms.

        Returns:
            Features [B, ceil(T / 2), D] and their lengths [B].
        """
        return self.encoder(mel, lengths)
