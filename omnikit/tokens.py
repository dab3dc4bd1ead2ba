"""The ids of every stream. Nothing else in omnikit knows an id or an offset.

A step holds one id per stream: stream 0 is text, streams 1.. are audio. Ids are local to their stream; `offsets` places
the streams side by side in one vocabulary, as the published Mini-Omni numbers them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

TEXT_SPECIALS = ("eot", "pad", "input", "answer", "asr")
AUDIO_SPECIALS = ("eoa", "pad", "input", "answer", "split")
RESERVED = 64
"""Ids kept for specials after the text vocabulary and after the codes of each audio stream, as published."""
IGNORE = -100
"""Label of a position without loss."""


@dataclass(frozen=True)
class TextIds:
    """Special ids of the text stream."""

    eot: int
    pad: int
    input: int
    answer: int
    asr: int


@dataclass(frozen=True)
class AudioIds:
    """Special ids of one audio stream."""

    eoa: int
    pad: int
    input: int
    answer: int
    split: int


class TokenLayout:
    """Derives every id from the parts.

    Args:
        text_vocab: ids of the backbone's own vocabulary.
        codebook_size: C, ids of one codebook.
        carries: for each audio stream, the codebooks that it carries (from the pattern).
        text_specials: ids reserved after the text vocabulary.
        audio_specials: ids reserved after each audio stream's codes.
    """

    def __init__(
        self,
        *,
        text_vocab: int,
        codebook_size: int,
        carries: tuple[tuple[int, ...], ...],
        text_specials: int = RESERVED,
        audio_specials: int = RESERVED,
    ):
        self.text_vocab, self.codebook_size, self.carries = text_vocab, codebook_size, carries
        self.num_text_specials = text_specials
        self.text = TextIds(*range(text_vocab, text_vocab + len(TEXT_SPECIALS)))
        starts = [codebook_size * len(books) for books in carries]
        self.audio = tuple(AudioIds(*range(n, n + len(AUDIO_SPECIALS))) for n in starts)
        self.sizes = (text_vocab + text_specials, *(n + audio_specials for n in starts))
        self.offsets = tuple(sum(self.sizes[:s]) for s in range(len(self.sizes)))
        self.num_streams = len(self.sizes)
        self.total = sum(self.sizes)

    def pads(self) -> Tensor:
        """The pad id of each stream [S]."""
        return self._row("pad", "pad")

    def inputs(self, *, audio: bool) -> Tensor:
        """The step that opens a prompt [S]; text prompts (`audio=False`) have pads in the audio streams."""
        return self._row("input", "input" if audio else "pad")

    def ends(self, *, audio: bool) -> Tensor:
        """The step that closes the given part of a prompt [S]."""
        return self._row("eot", "eoa" if audio else "pad")

    def marks(self, *, text: str, audio: bool) -> Tensor:
        """The last step of a prompt [S]: what is wanted in the text stream and whether speech is."""
        return self._row(text, "answer" if audio else "pad")

    def _row(self, text: str, audio: str) -> Tensor:
        return torch.tensor([getattr(self.text, text), *(getattr(ids, audio) for ids in self.audio)])

    def is_text(self, ids: Tensor | int) -> Tensor | bool:
        """Tell which ids [...] of the text stream are text, that is of the backbone's own vocabulary: bool [...]."""
        return ids < self.text_vocab

    def code_ids(self, stream: int, codebook: int) -> range:
        """Return the ids that the codes of a codebook have in the audio stream that carries it."""
        begin = self.carries[stream].index(codebook) * self.codebook_size
        return range(begin, begin + self.codebook_size)

    def code_offsets(self, codebooks: Tensor) -> Tensor:
        """Codebook that each audio stream carries at each step [S - 1, L] (-1: none) -> what to add to its code."""
        return self._places.to(codebooks.device)[_stream_index(codebooks), codebooks] * self.codebook_size

    def to_ids(self, codes: Tensor, codebooks: Tensor) -> Tensor:
        """Codes laid out by a pattern [.., S - 1, L], their codebooks [S - 1, L] -> ids, pad where no code stands."""
        pads = self.pads()[1:, None].to(codes.device)
        return torch.where(codebooks < 0, pads, codes + self.code_offsets(codebooks.clamp(min=0)))

    def to_codes(self, ids: Tensor, codebooks: Tensor) -> Tensor:
        """The inverse of `to_ids`; positions without a codebook give -1. Ids outside the codebook stay outside."""
        codes = ids - self.code_offsets(codebooks.clamp(min=0))
        return torch.where(codebooks < 0, torch.full_like(codes, -1), codes)

    @cached_property
    def _places(self) -> Tensor:
        """Place of each codebook among those that a stream carries [S - 1, K], 0 where it does not carry it."""
        table = torch.zeros(len(self.carries), 1 + max(max(books) for books in self.carries), dtype=torch.long)
        for stream, books in enumerate(self.carries):
            table[stream, list(books)] = torch.arange(len(books))
        return table


def _stream_index(codebooks: Tensor) -> Tensor:
    return torch.arange(codebooks.shape[0], device=codebooks.device)[:, None].expand_as(codebooks)
