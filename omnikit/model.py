"""Network of omnikit: one language model that takes speech or text and answers with text and speech.

    steps [B, S, L] -> embed each stream, mean over S -> backbone -> text head -> text logits
                       (adapted speech stands in               '-> (TTS adapter) -> audio heads -> audio logits
                        the audio streams of the prompt)

Letters: B batch, N samples, T frames, D width, K codebooks, S streams, L steps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from omnikit.freezing import Freezable
from omnikit.interfaces import Adapter, AudioEncoder, Backbone, Codec, Hidden, Pattern
from omnikit.public_weights import load_named
from omnikit.size_limits import check_count
from omnikit.tokens import TokenLayout

PARTS = ("encoder", "adapter", "llm", "tts_adapter", "new_text_embeddings", "new_audio_embeddings", "codec")
"""Names of the parts and further modules of an `OmniLM`, by which they are frozen and reported."""


@dataclass(frozen=True)
class AdaptedSpeech:
    """Adapted speech features that take the place of the audio streams in the prompts of a batch."""

    features: Tensor  # [B, T, D], one sequence each; B is the number of sequences, also in packed rows
    lengths: Tensor  # [B]
    starts: Tensor  # [B], position of the first feature in its sequence
    places: Tensor | None = None
    """If sequences have several spans of speech: index of the first feature of each of the B spans among the positions
    of all rows, in place of `starts`."""


class PackedRows(NamedTuple):
    """The sequence of each step of a batch, and its position there, if rows hold several sequences one after another.

    A tuple, because DistributedDataParallel finds tensors only in tuples, lists and dicts.
    """

    positions: Tensor  # [B, L], position of each step in its sequence
    sequences: Tensor  # [B, L], number of the sequence in the batch; -1 in the padding


@dataclass
class Cache:
    """KV caches of the backbone and of the TTS adapter."""

    llm: Any
    tts: Any


class NewEmbeddings(nn.Module):
    """Embedding table and head for the added ids, which are not in the backbone's own vocabulary."""

    def __init__(self, num: int, dim: int, std: float):
        super().__init__()
        self.embed = nn.Embedding(num, dim)
        self.head = nn.Linear(dim, num, bias=False)
        nn.init.normal_(self.embed.weight, std=std)
        nn.init.normal_(self.head.weight, std=0.02)


class OmniLM(Freezable):
    """A speech language model assembled from parts; widths, streams and ids are derived from their numbers.

    Args:
        encoder: built encoder.
        adapter: called with `dim_in` and `dim_out`.
        llm: built backbone.
        codec: built codec.
        pattern: called with `num_codebooks`.
        tts_blocks: number of blocks of the TTS adapter; 0 = none (released checkpoint), 6 = the paper.
    """

    part_names = PARTS

    def __init__(
        self,
        *,
        encoder: AudioEncoder,
        adapter: Callable[..., Adapter],
        llm: Backbone,
        codec: Codec,
        pattern: Callable[..., Pattern],
        tts_blocks: int = 0,
    ):
        super().__init__()
        check_count("codec.num_codebooks", codec.num_codebooks)
        check_count("model.tts_blocks", tts_blocks)
        self.encoder, self.llm, self.codec = encoder, llm, codec
        self.adapter = adapter(dim_in=encoder.dim, dim_out=llm.dim)
        self.pattern = pattern(num_codebooks=codec.num_codebooks)
        self.layout = TokenLayout(
            text_vocab=llm.vocab_size, codebook_size=codec.codebook_size, carries=self.pattern.carries
        )
        self.tts_adapter = llm.blocks(tts_blocks) if tts_blocks else None
        self.new_text_embeddings = NewEmbeddings(self.layout.num_text_specials, llm.dim, llm.embedding_std)
        self.new_audio_embeddings = NewEmbeddings(sum(self.layout.sizes[1:]), llm.dim, llm.embedding_std)
        offsets = torch.tensor([offset - self.layout.offsets[1] for offset in self.layout.offsets[1:]])
        self.register_buffer("audio_offsets", offsets[None, :, None], persistent=False)

    @property
    def device(self) -> torch.device:
        return self.new_text_embeddings.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type in which everything between encoder and codec is computed: adapter, backbone and heads."""
        return self.new_text_embeddings.embed.weight.dtype

    def to_dtype(self, dtype: torch.dtype) -> OmniLM:
        """Convert all weights but those of encoder and codec to another type, in place, and return the model.

        Buffers stay as they are: rounded rotary frequencies would rotate far positions by wrong angles.
        """
        for module in (self.adapter, self.llm, self.tts_adapter, self.new_text_embeddings, self.new_audio_embeddings):
            for parameter in module.parameters() if module is not None else ():
                parameter.data = parameter.data.to(dtype)
        return self

    def parts(self) -> dict[str, nn.Module]:
        """Return the model's modules by their names in `PARTS`, leaving out those that this model does not have."""
        return {name: getattr(self, name) for name in PARTS if getattr(self, name) is not None}

    def load_weights(self) -> None:
        """Let encoder, backbone and codec read the weights that their `weights` options name, see `Part`."""
        for part in (self.encoder, self.llm, self.codec):
            load_named(part)

    def encode_speech(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode waveforms [B, N] to adapted features [B, T, D], returned with their lengths [B] in positions.

        `lengths` [B] counts the samples of each waveform.
        """
        return self.adapter(*self.encoder(wav, lengths))

    def num_speech_positions(self, features: int) -> int:
        """Return the number of prompt positions that a number of encoder frames takes after the adapter."""
        return -(-features // self.adapter.stride)

    def embed(self, steps: Tensor, speech: AdaptedSpeech | None = None, packed: PackedRows | None = None) -> Tensor:
        """Return the embeddings [B, L, D] of steps [B, S, L]: the mean over the streams' embeddings at each position.

        Positions inside `speech` have its features in the audio streams instead of embeddings.
        """
        audio = self.new_audio_embeddings.embed(steps[:, 1:] + self.audio_offsets).sum(dim=1, dtype=torch.float32)
        if speech is not None:
            audio = self._with_speech(audio, speech, packed)
        return ((self._embed_text(steps[:, 0]) + audio) / self.layout.num_streams).to(self.dtype)

    def _embed_text(self, ids: Tensor) -> Tensor:
        known = self.llm.embed(ids.clamp(max=self.llm.vocab_size - 1))
        new = self.new_text_embeddings.embed((ids - self.llm.vocab_size).clamp(min=0))
        return torch.where((ids < self.llm.vocab_size)[..., None], known, new)

    def _with_speech(self, audio: Tensor, speech: AdaptedSpeech, packed: PackedRows | None) -> Tensor:
        if speech.places is not None:
            return self._insert_spans(audio, speech)
        return self._insert(audio, speech) if packed is None else self._insert_packed(audio, speech, packed)

    def _insert(self, audio: Tensor, speech: AdaptedSpeech) -> Tensor:
        """Replace the summed audio embeddings [B, L, D] by speech features at the positions that hold speech.

        Every audio stream holds the feature, so their sum holds it S - 1 times.
        """
        at = torch.arange(audio.shape[1], device=audio.device)[None] - speech.starts[:, None]
        inside = (at >= 0) & (at < speech.lengths[:, None])
        at = at.clamp(0, speech.features.shape[1] - 1)[..., None].expand(-1, -1, audio.shape[2])
        summed = speech.features.gather(1, at) * (self.layout.num_streams - 1)
        return torch.where(inside[..., None], summed, audio)

    def _insert_packed(self, audio: Tensor, speech: AdaptedSpeech, packed: PackedRows) -> Tensor:
        """Replace summed audio embeddings like `_insert` in packed rows, by the features of several sequences a row."""
        frames, sequences = speech.features.shape[1], packed.sequences.clamp(min=0)
        at = packed.positions - speech.starts[sequences]
        inside = (packed.sequences >= 0) & (at >= 0) & (at < speech.lengths[sequences])
        at = (sequences * frames + at.clamp(0, frames - 1)).flatten()
        summed = speech.features.flatten(0, 1).index_select(0, at).view_as(audio) * (self.layout.num_streams - 1)
        return torch.where(inside[..., None], summed, audio)

    def _insert_spans(self, audio: Tensor, speech: AdaptedSpeech) -> Tensor:
        """Replace summed audio embeddings like `_insert` where sequences, packed or not, have several spans."""
        (spans, frames), count = speech.features.shape[:2], audio.shape[0] * audio.shape[1]
        index = torch.arange(frames, device=audio.device)
        to = torch.where(index < speech.lengths[:, None], speech.places[:, None] + index, count)  # `count`: padding
        held = torch.full((count + 1,), -1, device=audio.device)
        held = held.scatter(0, to.flatten(), torch.arange(spans * frames, device=audio.device))[:count]
        summed = speech.features.flatten(0, 1).index_select(0, held.clamp(min=0)).view_as(audio)
        inside = (held >= 0).view(audio.shape[:2])[..., None]
        return torch.where(inside, summed * (self.layout.num_streams - 1), audio)

    def new_cache(self) -> Cache:
        """Return empty KV caches for decoding step by step."""
        return Cache(self.llm.new_cache(), self.tts_adapter.new_cache() if self.tts_adapter is not None else None)

    def forward(
        self,
        steps: Tensor,
        speech: AdaptedSpeech | None = None,
        *,
        packed: PackedRows | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Hidden:
        """Compute the normed hidden states [B, L, D] of steps [B, S, L], from which the heads compute logits.

        `positions` [B, L], `mask` [B, L_cached + L] and `cache` have the meaning that they have for `Backbone.forward`.
        They are not given if rows are packed; `packed` is None if each row is one sequence.
        """
        embeddings = self.embed(steps, speech, packed)
        return self.hidden(embeddings, packed=packed, positions=positions, mask=mask, cache=cache)

    def hidden(
        self,
        embeddings: Tensor,
        *,
        packed: PackedRows | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Hidden:
        """Compute the normed hidden states [B, L, D] of embeddings [B, L, D]; see `forward` for the other arguments."""
        rows = {}  # only if needed, since a backbone may not take them
        if packed is not None:
            positions, rows = packed.positions, {"sequences": packed.sequences}
        if positions is None:
            positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None].expand(len(embeddings), -1)
        trunk = self.llm(embeddings, positions, mask, cache and cache.llm, **rows)
        text = self.llm.final_norm(trunk)
        if self.tts_adapter is None:
            return Hidden(text, text)
        return Hidden(text, self.tts_adapter(trunk, positions, mask, cache and cache.tts, **rows))

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits [..., V] over the text stream's ids from hidden states [..., D]."""
        return torch.cat([self.llm.head(hidden), self.new_text_embeddings.head(hidden)], dim=-1)

    def audio_logits(self, hidden: Tensor) -> list[Tensor]:
        """Compute the logits over each audio stream's ids from hidden states [..., D]: S - 1 tensors [..., V_s]."""
        return list(self.new_audio_embeddings.head(hidden).split(self.layout.sizes[1:], dim=-1))
