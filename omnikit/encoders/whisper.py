"""Whisper's audio encoder (Radford et al. 2022, arXiv 2212.04356), as published or without the padding to 30 s."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from whisper.audio import HOP_LENGTH, N_FFT, SAMPLE_RATE, mel_filters
from whisper.model import AudioEncoder as WhisperAudioEncoder
from whisper.model import ResidualAttentionBlock

from omnikit.encoders.whisper_files import is_published, read_encoder
from omnikit.encoders.whisper_transformers import read_transformers
from omnikit.hub import holds_transformers
from omnikit.interfaces import AudioEncoder, lengths_to_mask
from omnikit.limits import check_count
from omnikit.sizes import PUBLISHED, sized

CONV_STRIDE = 2  # of the second convolution
FRAME_SAMPLES = HOP_LENGTH * CONV_STRIDE
WINDOW_SAMPLES = 30 * SAMPLE_RATE  # what the published encoder always sees
TINY = {"width": 16, "heads": 2, "layers": 2}


def log_mel(wav: Tensor, lengths: Tensor, n_mels: int) -> tuple[Tensor, Tensor]:
    """Whisper's log-mel features, each sample as if it were alone.

    whisper's own function reflects at the end of the padded batch and clamps by the maximum of the whole batch, so a
    sample's features would depend on its neighbours.

    Args:
        wav: [B, N] in -1..1.
        lengths: [B] in samples.

    Returns:
        Features [B, n_mels, T], zero behind a sample's end, and their lengths [B] in frames of 10 ms.
    """
    frames = lengths // HOP_LENGTH
    window = torch.hann_window(N_FFT, device=wav.device)
    stft = torch.stft(_reflected(wav, lengths), N_FFT, HOP_LENGTH, window=window, center=False, return_complex=True)
    power = stft[..., : int(frames.max())].abs() ** 2
    mel = (mel_filters(wav.device, n_mels) @ power).clamp(min=1e-10).log10()
    inside = lengths_to_mask(frames, mel.shape[-1])[:, None]
    loudest = mel.masked_fill(~inside, -torch.inf).amax(dim=(1, 2), keepdim=True)
    return ((torch.maximum(mel, loudest - 8.0) + 4.0) / 4.0).masked_fill(~inside, 0.0), frames


def _reflected(wav: Tensor, lengths: Tensor) -> Tensor:
    """[B, N] -> [B, N + N_FFT]: half a window more at both ends of each sample, mirrored there."""
    half, last = N_FFT // 2, lengths[:, None] - 1
    position = torch.arange(-half, wav.shape[1] + half, device=wav.device)[None].abs()
    position = torch.where(position > last, 2 * last - position, position)
    return wav.gather(1, position.clamp(min=0).minimum(last))


class WhisperEncoder(AudioEncoder):
    """openai-whisper's `AudioEncoder`, fed with waveforms.

    Args:
        n_mels: mel bands, 80 or 128.
        n_ctx: longest input in frames of 20 ms; 1500 as published.
        width: D.
        heads: attention heads.
        layers: transformer blocks.
        pad_to_30s: as published: every input is filled with silence to 30 s and the features are cut to
            `int(ms / 20) + 1` frames. Otherwise nothing is padded, which is many times cheaper, and padding inside a
            batch is masked out.
        weights: see `Part`; or a `.pt` file of openai-whisper, or the name of one (`tiny`, `small`, `large-v3` ..); or
            a folder or hub id as transformers writes it.
        size: `published`, or `tiny` for another width, heads and layers, see `omnikit.sizes`.
    """

    frame_samples = FRAME_SAMPLES
    frame_rate = SAMPLE_RATE / FRAME_SAMPLES
    sample_rate = SAMPLE_RATE
    families: tuple[str, ...] = ("whisper",)
    """What transformers calls the models whose weights fit."""

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
        if n_mels not in (80, 128):
            raise ValueError(f"n_mels {n_mels}: whisper has filters for 80 and 128 only")
        if width % (2 * heads):
            raise ValueError(f"--encoder.width {width}: must be a multiple of twice the number of heads ({heads})")
        if pad_to_30s and n_ctx * FRAME_SAMPLES != WINDOW_SAMPLES:
            raise ValueError(f"n_ctx {n_ctx}: padding to 30 s needs {WINDOW_SAMPLES // FRAME_SAMPLES}")
        self.n_mels, self.n_ctx, self.dim = n_mels, n_ctx, width
        self.pad_to_30s, self.weights = pad_to_30s, weights
        check_count("encoder.layers", layers)
        self.encoder = WhisperAudioEncoder(n_mels, n_ctx, width, heads, layers)

    def load_weights(self) -> None:
        """From safetensors as every part, or from what openai-whisper reads, or what transformers writes."""
        if self.weights is not None and is_published(self.weights):
            read_encoder(self.weights, self.encoder)
        elif self.weights is not None and holds_transformers(self.weights):
            read_transformers(self.weights, self.encoder, self.families)
        else:
            super().load_weights()

    def forward(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `AudioEncoder.forward`; 50 frames/s.

        Raises:
            ValueError: a recording shorter than one frame (20 ms) or longer than `n_ctx` frames.
        """
        self._check(int(lengths.min()), int(lengths.max()))
        return self._padded(wav, lengths) if self.pad_to_30s else self.encode_mel(*log_mel(wav, lengths, self.n_mels))

    def num_frames(self, samples: int) -> int:
        """See `AudioEncoder.num_frames`."""
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
            seconds, most = longest / SAMPLE_RATE, limit / SAMPLE_RATE
            raise ValueError(f"a recording of {seconds:.1f} s is longer than the encoder's {most:g} s")

    def _padded(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = lengths.new_tensor([self.num_frames(samples) for samples in lengths.tolist()])
        return self.encoder(self.mel_of_30s(wav, lengths))[:, : int(frames.max())], frames

    def mel_of_30s(self, wav: Tensor, lengths: Tensor) -> Tensor:
        """Waveform [B, N] with lengths [B] in samples -> log-mel [B, n_mels, 3000], silence up to 30 s included."""
        wav = wav * lengths_to_mask(lengths, wav.shape[1])
        filled = F.pad(wav, (0, WINDOW_SAMPLES - wav.shape[1]))
        return log_mel(filled, torch.full_like(lengths, WINDOW_SAMPLES), self.n_mels)[0]

    def encode_mel(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel [B, n_mels, T] with lengths [B] in frames of 10 ms -> features [B, ceil(T / 2), D], lengths [B]."""
        frames = (lengths + CONV_STRIDE - 1) // CONV_STRIDE
        return self.encoder.ln_post(self.transform(self.convolve(mel, lengths), frames)), frames

    def convolve(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Log-mel [B, n_mels, T] with lengths [B] in frames of 10 ms -> [B, ceil(T / 2), D]."""
        # a convolution must see zeros behind a sample's end, as it would if the sample were alone
        x = F.gelu(self.encoder.conv1(mel)) * lengths_to_mask(lengths, mel.shape[-1])[:, None]
        return F.gelu(self.encoder.conv2(x)).transpose(1, 2)

    def transform(self, x: Tensor, frames: Tensor) -> Tensor:
        """The blocks on [B, T, D], of which a sample sees its first `frames` [B]; before the last norm."""
        x = x + self.encoder.positional_embedding[: x.shape[1]]
        mask = lengths_to_mask(frames, x.shape[1])
        bias = None if bool(mask.all()) else torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -torch.inf)
        for block in self.encoder.blocks:
            x = _block(block, x, bias)
        return x


def _block(block: ResidualAttentionBlock, x: Tensor, bias: Tensor | None) -> Tensor:
    """One of whisper's blocks on [B, T, D] with a bias [B, T] on the keys; whisper's own knows the causal mask only."""
    attention: nn.Module = block.attn
    normed = block.attn_ln(x)
    q, k, v = (
        layer(normed).unflatten(-1, (attention.n_head, -1)).transpose(1, 2)
        for layer in (attention.query, attention.key, attention.value)
    )
    x = x + attention.out(_attend(q, k, v, bias).transpose(1, 2).flatten(2))
    return x + block.mlp(block.mlp_ln(x))


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Queries, keys and values [B, H, T, D / H] -> [B, H, T, D / H]."""
    if not torch.is_grad_enabled() or q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias[:, None, None])
    # on the CPU the fused kernel's backward is slower than these three plain steps
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias[:, None, None]
    return scores.softmax(dim=-1) @ v
