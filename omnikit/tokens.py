"""Token ids of every stream; nothing else in omnikit knows an id or an offset.

A step holds one id per stream: stream 0 is text, streams 1.. are audio. Ids are local to their stream; `offsets` places
the streams side by side in one vocabulary, as the published Mini-Omni numbers them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

TEXT_SPECIALS = ("eot", "pad", "input", "answer", "asr")
AUDIO_SPECIALS = ("eoa", "pad", "input", "answer", "split")
RESERVED = 64
"""Number of ids reserved for special tokens after the text vocabulary and after the codes of each audio stream.

The published Mini-Omni reserves the same number.
"""
IGNORE = -100
"""Label of a position that carries no loss."""


@dataclass(frozen=True)
class TextIds:
    """Ids of the special tokens of the text stream."""

    eot: int
    pad: int
    input: int
    answer: int
    asr: int


@dataclass(frozen=True)
class AudioIds:
    """Ids of the special tokens of one audio stream."""

    eoa: int
    pad: int
    input: int
    answer: int
    split: int


class TokenLayout:
    """The layout of all token ids, derived from the numbers of the parts.

    Args:
        text_vocab: number of ids of the backbone's own vocabulary.
        codebook_size: number of codes of one codebook.
        carries: for each audio stream, the codebooks that it carries (from the pattern).
        text_specials: number of ids reserved after the text vocabulary.
        audio_specials: number of ids reserved after each audio stream's codes.
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
        self._steps: dict[tuple[str, str], np.ndarray] = {}

    def pads(self) -> Tensor:
        """Return the pad id of each stream [S]."""
        return self._row("pad", "pad")

    def inputs(self, *, audio: bool) -> Tensor:
        """Return the step [S] that opens a prompt; text prompts (`audio=False`) have pads in the audio streams."""
        return self._row("input", "input" if audio else "pad")

    def ends(self, *, audio: bool) -> Tensor:
        """Return the step [S] that closes the question in a prompt.

        Text prompts (`audio=False`) have pads in the audio streams.
        """
        return self._row("eot", "eoa" if audio else "pad")

    def marks(self, *, text: str, audio: bool) -> Tensor:
        """Return the last step [S] of a prompt: for each stream, a mark that says whether or how it is to answer."""
        return self._row(text, "answer" if audio else "pad")

    def step(self, text: str, audio: str) -> np.ndarray:
        """Return the step [S] with one special token in the text stream and one in all audio streams.

        The array is made once and cannot be written to.

        Args:
            text: name of a token in `TEXT_SPECIALS`.
            audio: name of a token in `AUDIO_SPECIALS`.
        """
        if (text, audio) not in self._steps:
            ids = np.array([getattr(self.text, text), *(getattr(each, audio) for each in self.audio)])
            ids.setflags(write=False)
            self._steps[text, audio] = ids
        return self._steps[text, audio]

    def _row(self, text: str, audio: str) -> Tensor:
        return torch.from_numpy(self.step(text, audio).copy())

    def is_text(self, ids: Tensor | int) -> Tensor | bool:
        """Return whether ids [...] of the text stream are in the backbone's own vocabulary, as bool [...]."""
        return ids < self.text_vocab

    def code_ids(self, stream: int, codebook: int) -> range:
        """Return the ids that a codebook's codes have in the audio stream that carries it."""
        begin = self.carries[stream].index(codebook) * self.codebook_size
        return range(begin, begin + self.codebook_size)

    def code_offsets(self, codebooks: Tensor) -> Tensor:
        """Return the offsets [S - 1, L] that are added to codes to convert them to ids.

        `codebooks` [S - 1, L] says which codebook each code is from; -1 marks a place without a code, whose offset has
        no meaning.
        """
        return self._places.to(codebooks.device)[_stream_index(codebooks), codebooks] * self.codebook_size

    def to_ids(self, codes: np.ndarray) -> np.ndarray:
        """Convert codes [K, T] of whole frames to the ids that they have in the audio streams that carry them."""
        return codes + self._begins[:, None]

    def to_codes(self, ids: Tensor, codebooks: Tensor) -> Tensor:
        """Convert ids laid out by a pattern [.., S - 1, L] to codes, with -1 where no code stands.

        `codebooks` [S - 1, L] says which codebook each code is from, -1 where there is none. Ids outside the codebook
        give codes outside it.
        """
        codes = ids - self.code_offsets(codebooks.clamp(min=0))
        return torch.where(codebooks < 0, torch.full_like(codes, -1), codes)

    @cached_property
    def _begins(self) -> np.ndarray:
        """Id of code 0 of each codebook in its audio stream [K]."""
        begins = np.zeros(sum(len(books) for books in self.carries), dtype=np.int64)
        for stream, books in enumerate(self.carries):
            for book in books:
                begins[book] = self.code_ids(stream, book).start
        return begins

    @cached_property
    def _places(self) -> Tensor:
        """Index of each codebook among those of an audio stream, as a table [S - 1, K]; 0 where it is not carried."""
        table = torch.zeros(len(self.carries), 1 + max(max(books) for books in self.carries), dtype=torch.long)
        for stream, books in enumerate(self.carries):
            table[stream, list(books)] = torch.arange(len(books))
        return table


def _stream_index(codebooks: Tensor) -> Tensor:
    return torch.arange(codebooks.shape[0], device=codebooks.device)[:, None].expand_as(codebooks)
