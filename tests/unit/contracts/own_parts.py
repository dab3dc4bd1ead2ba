"""Parts as a user would write them: each has the members that its contract requires, and nothing else.

The contracts are those of `omnikit/interfaces.py`. The parts reuse no class of omnikit except their contracts, and rely
on no default that a contract does not promise. An access to any other attribute raises `NotPromised`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from omnikit.interfaces import (
    Adapter,
    AudioEncoder,
    Backbone,
    Codec,
    Engine,
    Hidden,
    Pattern,
    Prefill,
    Slots,
    Tokenizer,
)
from omnikit.model import OmniLM
from omnikit.streaming import DecodeStream, check_mode


class NotPromised(Exception):
    """Error raised when an attribute of a part is read that the part's contract does not name.

    It is not an `AttributeError`, because `getattr` with a default would swallow that.
    """


class Strict:
    """A mixin for parts that raises `NotPromised` for attributes that neither the class nor its contract has."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return super().__getattr__(name)  # the parameters and modules of an `nn.Module`
        except AttributeError:
            raise NotPromised(f"{type(self).__name__}.{name}") from None


class OwnEncoder(Strict, AudioEncoder):
    """A minimal audio encoder with one linear layer over windows of 10 ms."""

    dim, frame_rate, sample_rate = 6, 100.0, 8000

    def __init__(self):
        super().__init__()
        self._layer = nn.Linear(80, self.dim)

    def forward(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.arange(wav.shape[1], device=wav.device) < lengths[:, None]
        windows = nn.functional.pad(wav * inside, (0, -wav.shape[1] % 80)).unflatten(1, (-1, 80))
        return self._layer(windows), -(-lengths // 80)


class OwnAdapter(Strict, Adapter):
    """A minimal adapter with one linear layer."""

    def __init__(self, *, dim_in: int, dim_out: int):
        super().__init__()
        self._layer = nn.Linear(dim_in, dim_out)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self._layer(features), lengths


class OwnTokenizer(Strict, Tokenizer):
    """A minimal tokenizer whose tokens are UTF-8 bytes."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def save(self, folder: str) -> None:
        pass


class OwnCache(Strict):
    """A minimal KV cache that holds the keys and values [B, L, D] of each block."""

    def __init__(self, blocks: int):
        self._pairs: list[tuple[Tensor, Tensor] | None] = [None] * blocks

    def reorder_cache(self, rows: Tensor) -> None:
        self._pairs = [(keys[rows], values[rows]) for keys, values in self._pairs]

    def _extend(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if (old := self._pairs[block]) is not None:
            keys, values = torch.cat([old[0], keys], dim=1), torch.cat([old[1], values], dim=1)
        self._pairs[block] = keys, values
        return keys, values


class _Blocks(nn.Module):
    """A minimal stack of transformer blocks with one attention head and an MLP each, and sine position encodings."""

    def __init__(self, blocks: int, dim: int):
        super().__init__()
        self.mixers = nn.ModuleList(nn.Linear(dim, 3 * dim) for _ in range(blocks))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
            for _ in range(blocks)
        )

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: OwnCache | None) -> Tensor:
        x = x + 0.1 * _sines(positions, x.shape[-1])
        for block, (mixer, mlp) in enumerate(zip(self.mixers, self.mlps, strict=True)):
            queries, keys, values = mixer(nn.functional.layer_norm(x, x.shape[-1:])).chunk(3, dim=-1)
            if cache is not None:
                keys, values = cache._extend(block, keys, values)
            x = x + nn.functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=_visible(x.shape[1], keys.shape[1], mask, x)
            )
            x = x + mlp(x)
        return x


def _sines(positions: Tensor, dim: int) -> Tensor:
    rates = torch.exp(torch.arange(dim // 2, device=positions.device) * (-math.log(1000) / (dim // 2)))
    angles = positions[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _visible(new: int, length: int, mask: Tensor | None, like: Tensor) -> Tensor:
    """Return an additive attention mask [B or 1, new, length] that is causal and hides masked positions."""
    causal = torch.ones(new, length, dtype=torch.bool, device=like.device).tril(length - new)
    allowed = causal[None] if mask is None else causal & mask[:, None].bool()
    return torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill(~allowed, -1e9)


class OwnBlocks(Strict, nn.Module):
    """A minimal stack of blocks for a TTS adapter, of the same kind as the blocks of `OwnBackbone`."""

    def __init__(self, n: int, dim: int):
        super().__init__()
        self._n, self._stack, self._norm = n, _Blocks(n, dim), nn.LayerNorm(dim)

    def forward(self, hidden: Tensor, positions: Tensor, mask: Tensor | None = None, cache: Any = None) -> Tensor:
        return self._norm(self._stack(hidden, positions, mask, cache))

    def new_cache(self) -> OwnCache:
        return OwnCache(self._n)


class OwnBackbone(Strict, Backbone):
    """A minimal backbone: a causal language model of bytes with one block."""

    dim, vocab_size, embedding_std = 32, 256, 0.5

    def __init__(self):
        super().__init__()
        self.tokenizer = OwnTokenizer()
        self._table, self._stack = nn.Embedding(self.vocab_size, self.dim), _Blocks(1, self.dim)
        self._norm, self._out = nn.LayerNorm(self.dim), nn.Linear(self.dim, self.vocab_size)
        nn.init.normal_(self._table.weight, std=self.embedding_std)

    def embed(self, ids: Tensor) -> Tensor:
        return self._table(ids)

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None = None, cache: Any = None) -> Tensor:
        return self._stack(embeddings, positions, mask, cache)

    def final_norm(self, hidden: Tensor) -> Tensor:
        return self._norm(hidden)

    def head(self, hidden: Tensor) -> Tensor:
        return self._out(hidden)

    def new_cache(self) -> OwnCache:
        return OwnCache(1)

    def blocks(self, n: int) -> OwnBlocks:
        return OwnBlocks(n, self.dim)


class OwnCodec(Strict, Codec):
    """A minimal audio codec whose codes are quantised samples.

    Decoding smooths each sample with the next frame's first, so that decode streams lag by a frame.
    """

    num_codebooks, codebook_size, sample_rate = 3, 9, 600
    frame_samples, lookahead = 3, 3

    def encode(self, wav: Tensor) -> Tensor:
        levels = nn.functional.pad(wav, (0, -wav.shape[1] % 3)).unflatten(1, (-1, 3)).transpose(1, 2)
        return ((levels + 1) / 2 * self.codebook_size).long().clamp(0, self.codebook_size - 1)

    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        levels = codes / self.codebook_size * 2 - 1
        following = nn.functional.pad(levels[:, :1, 1:], (0, 1)) if codes.shape[2] else levels[:, :1]
        return (0.8 * levels + 0.2 * following).transpose(1, 2).flatten(1)

    def stream(self, batch_size: int = 1, mode: str = "exact") -> OwnStream:
        check_mode(mode)
        return OwnStream(self, batch_size)


class OwnStream(Strict, DecodeStream):
    """A decode stream of the minimal codec, which holds back the last frame until the next one has been pushed."""

    def __init__(self, codec: OwnCodec, batch_size: int):
        self._codec, self._held = codec, torch.zeros(batch_size, 3, 0, dtype=torch.long)

    def push(self, codes: Tensor) -> Tensor:
        codes = torch.cat([self._held, codes], dim=2)
        self._held = codes[:, :, -1:]
        return self._codec.decode(codes)[:, : 3 * max(0, codes.shape[2] - 1)]

    def finish(self) -> Tensor:
        return self._codec.decode(self._held)


class OwnPattern(Strict, Pattern):
    """A pattern of two audio streams: even codebooks in descending order, and odd codebooks one step later.

    The second stream has a hole in each frame with fewer odd codebooks than even ones. Frames a, b of K = 3 codebooks:

        .  a2 a0 b2 b0
        .  .  a1 .  b1
    """

    def __init__(self, *, num_codebooks: int):
        self.num_codebooks = num_codebooks
        even, odd = range(0, num_codebooks, 2), range(1, num_codebooks, 2)
        self.carries = tuple(reversed(even)), tuple(odd)
        self.first, self.stride = (1, 2), len(even)

    def codebook_at(self, step: int) -> list[int]:
        found = []
        for books, first in zip(self.carries, self.first, strict=True):
            place = (step - first) % self.stride if step >= first else self.stride
            found.append(books[place] if place < len(books) else -1)
        return found

    def num_steps(self, frames: int) -> int:
        return 1 + max(step for step, *_ in self._places(frames)) if frames else 0

    def interleave(self, frames: Tensor, hole: int = -1) -> Tensor:
        count = frames.shape[2]
        steps = frames.new_full((frames.shape[0], 2, self.num_steps(count)), hole)
        for step, stream, book, frame in self._places(count):
            steps[:, stream, step] = frames[:, book, frame]
        return steps

    def deinterleave(self, steps: Tensor) -> Tensor:
        complete = 0
        while self.num_steps(complete + 1) <= steps.shape[2]:
            complete += 1
        frames = steps.new_zeros(steps.shape[0], self.num_codebooks, complete)
        for step, stream, book, frame in self._places(complete):
            frames[:, book, frame] = steps[:, stream, step]
        return frames

    def _places(self, frames: int) -> list[tuple[int, int, int, int]]:
        """Return step, stream, codebook and frame of each code in the given number of frames."""
        return [
            (first + place + self.stride * frame, stream, book, frame)
            for frame in range(frames)
            for stream, (books, first) in enumerate(zip(self.carries, self.first, strict=True))
            for place, book in enumerate(books)
        ]


class OwnEngine(Strict, Engine):
    """A minimal engine without a KV cache, which computes all positions of each sequence again in every decode step."""

    name, weight_bytes = "own", 4

    def __init__(self, model: OmniLM):
        self._model = model

    def open(self, capacity: int) -> OwnSlots:
        return OwnSlots(self._model, capacity)

    def text_logits(self, hidden: Tensor) -> Tensor:
        return self._model.text_logits(hidden)

    def audio_logits(self, hidden: Tensor) -> Tensor:
        return torch.cat(self._model.audio_logits(hidden), dim=-1)


class OwnSlots(Strict, Slots):
    """A minimal set of slots that stores the embeddings [L, D] of each sequence."""

    def __init__(self, model: OmniLM, capacity: int):
        self.capacity, self.lengths = capacity, []
        self._model, self._sequences = model, []

    def prefill(self, prompts: list[Tensor]) -> OwnPrefill:
        return OwnPrefill(prompts)

    def admit(self, prefill: OwnPrefill) -> None:
        assert prefill.left == 0
        self._set([*self._sequences, *prefill._prompts])

    def advance(self, embeddings: Tensor) -> Hidden:
        assert len(embeddings) == len(self._sequences) > 0
        new = zip(self._sequences, embeddings, strict=True)
        self._set([torch.cat([sequence, one[None]]) for sequence, one in new])
        found = [self._model.hidden(sequence[None]) for sequence in self._sequences]
        return Hidden(torch.cat([each.text[:, -1] for each in found]), torch.cat([each.audio[:, -1] for each in found]))

    def copy(self, slot: int) -> None:
        self._set([*self._sequences, self._sequences[slot]])

    def release(self, slot: int) -> None:
        *others, last = self._sequences
        self._set([last if i == slot else sequence for i, sequence in enumerate(others)])

    def _set(self, sequences: list[Tensor]) -> None:
        assert len(sequences) <= self.capacity
        self._sequences, self.lengths = sequences, [len(sequence) for sequence in sequences]


class OwnPrefill(Strict, Prefill):
    """A minimal prefill that computes nothing and only counts the positions that are left."""

    def __init__(self, prompts: list[Tensor]):
        self._prompts, self.left = list(prompts), sum(map(len, prompts))

    def advance(self, positions: int) -> None:
        self.left -= min(self.left, positions)
