"""The network of Whisper's audio encoder (Radford et al. 2022, arXiv 2212.04356, section 2.2).

Modules and parameters are named as in openai-whisper, so that published weights fit. The features of each item of a
batch are independent of the other items, which openai-whisper's own module does not guarantee.

Letters: B batch, M mel bands, T frames, D width, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnikit.interfaces import lengths_to_mask
from omnikit.skip_init import empty_on_meta

CONV_STRIDE = 2  # stride of the second convolution
LONGEST_PERIOD = 10_000  # period of the slowest sinusoid in frames, divided by 2 pi


class WhisperNetwork(nn.Module):
    """The network of Whisper's encoder: two convolutions, sinusoidal position embeddings, pre-norm transformer blocks.

    Args:
        n_mels: M, number of mel bands.
        n_ctx: number of position embeddings, which is the maximum length of the input in frames of 20 ms.
        width: D, an even number.
        heads: H, number of attention heads.
        layers: number of transformer blocks.
    """

    def __init__(self, n_mels: int, n_ctx: int, width: int, heads: int, layers: int):
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=CONV_STRIDE, padding=1)
        positions = empty_on_meta((n_ctx, width), lambda: sinusoids(n_ctx, width))
        self.register_buffer("positional_embedding", positions)
        self.blocks = nn.ModuleList([WhisperBlock(width, heads) for _ in range(layers)])
        self.ln_post = nn.LayerNorm(width)

    def forward(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode log-mel spectrograms [B, M, T] with lengths [B] in frames of 10 ms.

        Returns:
            Features [B, ceil(T / 2), D] and their lengths [B].
        """
        frames = -(-lengths // CONV_STRIDE)
        return self.ln_post(self.transform(self.convolve(mel, lengths), frames)), frames

    def convolve(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Apply both convolutions to log-mel spectrograms [B, M, T] with lengths [B] in frames of 10 ms.

        Returns:
            Hidden states [B, ceil(T / 2), D].
        """
        # the second convolution has to see zeros behind each item's end, as if the item were alone
        x = F.gelu(self.conv1(mel)) * lengths_to_mask(lengths, mel.shape[-1])[:, None]
        return F.gelu(self.conv2(x)).transpose(1, 2)

    def transform(self, x: Tensor, frames: Tensor) -> Tensor:
        """Add position embeddings to hidden states [B, T, D] and apply the transformer blocks without the final norm.

        Args:
            x: hidden states [B, T, D].
            frames: number of frames of each item [B]; the blocks do not attend to frames behind them.
        """
        x = x + self.positional_embedding[: x.shape[1]]
        mask = lengths_to_mask(frames, x.shape[1])
        bias = None if bool(mask.all()) else torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -torch.inf)
        for block in self.blocks:
            x = block(x, bias)
        return x


class WhisperBlock(nn.Module):
    """A pre-norm transformer block of Whisper's encoder: self-attention and a two-layer MLP, each with a residual
    connection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn, self.attn_ln = WhisperAttention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Apply a transformer block of Whisper's encoder to hidden states [B, T, D].

        Args:
            x: hidden states [B, T, D].
            bias: values [B, T] that are added to the attention scores of each key; None = no bias.
        """
        x = x + self.attn(self.attn_ln(x), bias)
        return x + self.mlp(self.mlp_ln(x))


class WhisperAttention(nn.Module):
    """Multi-head self-attention without a causal mask, with the module names of openai-whisper."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.n_head = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Apply multi-head self-attention to hidden states [B, T, D]; `bias` as in `WhisperBlock.forward`."""
        q, k, v = (
            layer(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.out(_attend(q, k, v, bias).transpose(1, 2).flatten(2))


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the attention of queries to keys and values, all [B, H, T, D / H], with a bias [B, T] for each key."""
    if not torch.is_grad_enabled() or q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias[:, None, None])
    # on the CPU the backward pass of the fused kernel is slower than these three operations
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias[:, None, None]
    return scores.softmax(dim=-1) @ v


def sinusoids(length: int, width: int) -> Tensor:
    """Return sinusoidal position embeddings [length, width]: sines, then cosines, of width / 2 frequencies each."""
    steps = max(width // 2 - 1, 1)
    rates = torch.exp(torch.arange(width // 2) * (-math.log(LONGEST_PERIOD) / steps))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def encoder_sizes(encoder: nn.Module) -> dict[str, int]:
    """Return the options of `WhisperNetwork` that determine shapes, for it or for openai-whisper's own encoder."""
    n_ctx, width = encoder.positional_embedding.shape
    heads = encoder.blocks[0].attn.n_head if len(encoder.blocks) else 1
    layers = len(encoder.blocks)
    return {"n_mels": encoder.conv1.in_channels, "n_ctx": n_ctx, "width": width, "heads": heads, "layers": layers}
