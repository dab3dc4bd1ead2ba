"""What each kind of part must offer. `OmniLM` talks to these classes only, never to a concrete part.

Letters: B batch, N samples, T frames, D width, K codebooks, S streams, L steps, V vocabulary.

Every part that can start from trained weights takes a `weights` argument (a file, a folder or a hub id; `None` =
random). Constructors only build the network; `load_weights` reads what `weights` names, so that a recipe which
mentions two codecs does not load two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from omnikit.streaming import EXACT, DecodeStream, DecodeStreams, SeparateStreams


class Part(nn.Module):
    """A module that may start from trained weights."""

    weights: str | None = None

    def load_weights(self) -> None:
        """Read the weights that `self.weights` names; nothing to do where it is `None`.

        Raises:
            ValueError: the file is missing or does not fit this part; the message names the file and what differs.
        """
        if self.weights is not None:
            from omnikit.weights import load_into

            load_into(self, self.weights)


class AudioEncoder(Part, ABC):
    """Turns speech into a sequence of feature vectors."""

    dim: int
    """D, width of a feature."""
    frame_rate: float
    """Feature vectors per second (Hz)."""
    sample_rate: int
    """Expected sample rate of the input (Hz)."""

    @abstractmethod
    def forward(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`wav` [B, N] in -1..1 and `lengths` [B] in samples -> features [B, T, D] and their lengths [B] in frames.

        Padding never changes the features of a sample.
        """

    def num_frames(self, samples: int) -> int:
        """T of a recording of N samples, without encoding it. Only an encoder that can tell may be used in training
        without features made before.

        Raises:
            ValueError: it takes no recording of that length.
        """
        raise NotImplementedError


class Adapter(nn.Module, ABC):
    """Brings encoder features to the backbone's width. Built as `adapter(dim_in=..., dim_out=...)`."""

    stride: int = 1
    """Feature frames in per position out."""

    @abstractmethod
    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, T, D_in] and lengths [B] -> [B, ceil(T / stride), D_out] and lengths [B]."""


class Tokenizer(ABC):
    """Text to ids and back."""

    vocab_size: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Raises `ValueError` naming the characters that the vocabulary lacks."""

    def count(self, texts: list[str]) -> list[int]:
        """Ids of each text; of many at a time, where that is faster."""
        return [len(self.encode(text)) for text in texts]

    @abstractmethod
    def decode(self, ids: list[int]) -> str: ...

    @abstractmethod
    def save(self, folder: str) -> None:
        """Write the tokenizer's files to `folder`, to be found there when a checkpoint is loaded."""


class Backbone(Part, ABC):
    """A causal language model, seen as embedding, blocks, final norm and head."""

    dim: int
    vocab_size: int
    tokenizer: Tokenizer
    embedding_std: float
    """Spread of the embeddings, which new rows start with, too."""
    max_positions: int | None = None
    """Positions that a prompt may have at most; None = no limit is known."""

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Ids [...] -> embeddings [..., D]."""

    @abstractmethod
    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None = None, cache: Any = None) -> Tensor:
        """Embeddings [B, L, D] -> hidden states [B, L, D] *before* the final norm.

        `positions` [B, L]; `mask` [B, L_cached + L], 1 where a position may be attended to; `cache` from `new_cache`.
        """

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> [..., D]."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Normed hidden states [..., D] -> text logits [..., V]."""

    @abstractmethod
    def new_cache(self) -> Any:
        """Return an empty key/value cache.

        Sequences are decoded in one batch where the cache shows its keys and values, see
        `omnikit.kv_cache.can_join`; otherwise each is decoded by itself.
        """

    @abstractmethod
    def blocks(self, n: int) -> nn.Module:
        """A stack of `n` blocks of this backbone's kind, with its own final norm: `(hidden, positions, mask, cache)
        -> normed hidden`; `new_cache()` as here."""


class Codec(Part, ABC):
    """A neural (or other) audio codec with a rectangular code matrix, whatever it looks like inside."""

    num_codebooks: int
    """K, codes per frame = streams of the parallel patterns."""
    codebook_size: int
    sample_rate: int
    """Sample rate of the waveforms that are encoded and decoded (Hz)."""
    lookahead: int
    """Samples that an exact streamed decoding lags behind the frames given to it, at most."""
    frame_samples: ClassVar[int] | int
    """Samples per frame."""
    encodes_padded: ClassVar[bool] = False
    """Whether silence behind a waveform changes none of its codes, so that waveforms of other lengths can be encoded
    together."""

    @property
    def frame_rate(self) -> float:
        """Frames per second (Hz)."""
        return self.sample_rate / self.frame_samples

    @abstractmethod
    def encode(self, wav: Tensor) -> Tensor:
        """Waveform [B, N] in -1..1 -> codes [B, K, ceil(N / frame_samples)], int64."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, K, T] -> waveform [B, T * frame_samples].

        Raises:
            ValueError: an id outside the codebook.
        """

    @abstractmethod
    def stream(self, batch_size: int = 1, mode: str = EXACT) -> DecodeStream:
        """A streaming decoding, in one of `omnikit.streaming.MODES`.

        `exact`: what its `push` and `finish` give, joined, equals `decode` of the joined codes. `low_latency`: each
        `push` gives as many samples as its codes cover, and what depends on codes to come is estimated; a codec
        that cannot, or lags little anyway, streams exactly in this mode, too.

        Raises:
            ValueError: no such mode.
        """

    def streams(self, mode: str = EXACT) -> DecodeStreams:
        """Return streams that begin and end at different times, in one of `omnikit.streaming.MODES`.

        Raises:
            ValueError: no such mode.
        """
        return SeparateStreams(self, mode)

    def check_codes(self, codes: Tensor) -> None:
        """Refuse anything but [B, K, T] codes inside the codebook."""
        if codes.is_floating_point() or codes.is_complex() or codes.dtype in (torch.uint8, torch.int8, torch.int16):
            raise ValueError(f"codes must be int64 or int32, got {codes.dtype}")
        if codes.dim() != 3 or codes.shape[1] != self.num_codebooks:
            raise ValueError(f"codes must be [B, {self.num_codebooks}, T], got {list(codes.shape)}")
        if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) < self.codebook_size):
            bad = codes[(codes < 0) | (codes >= self.codebook_size)][0].item()
            raise ValueError(f"code {bad} is outside the codebook (0..{self.codebook_size - 1})")


class Pattern(ABC):
    """Where each code of a frame stands among the steps of the answer. Built as `pattern(num_codebooks=K)`.

    A pure index map: it moves values and never looks at them. `hole` fills the places that carry no code.

    All frames are alike: frame t stands where frame 0 stands, `stride * t` steps later. In audio stream s it takes up
    the steps from `first[s] + stride * t` to `first[s] + stride * (t + 1) - 1`, and the first of them carries a code.
    """

    num_codebooks: int
    """K."""
    carries: tuple[tuple[int, ...], ...]
    """For each audio stream, the codebooks that it carries, in the order in which their codes stand in a frame. Each
    codebook is carried by one stream."""
    first: Sequence[int]
    """For each audio stream, the answer step of its first code."""
    stride: int
    """Steps per frame."""

    @property
    def max_delay(self) -> int:
        """Steps from the first answer step to the first one at which every stream has begun."""
        return max(self.first)

    @abstractmethod
    def codebook_at(self, step: int) -> list[int]:
        """The codebook that each audio stream carries at answer step `step`; -1 where it carries none.

        From step `num_steps(1)` on this repeats every `stride` steps.
        """

    def codebooks(self, steps: int) -> Tensor:
        """Return `codebook_at` of the answer steps 0 .. L - 1 as a table [S - 1, L]."""
        table = [self.codebook_at(step) for step in range(steps)]
        return torch.tensor(table, dtype=torch.long).reshape(steps, len(self.carries)).T

    def end(self, stream: int, frames: int) -> int:
        """Return the answer step at which the end mark of an audio stream stands after `frames` frames: where the
        stream's next frame would begin."""
        return self.first[stream] + self.stride * frames

    @abstractmethod
    def num_steps(self, frames: int) -> int:
        """Steps from the first answer step to the last code of `frames` frames; 0 for no frame."""

    def num_frames(self, steps: int) -> int:
        """Return how many frames a prefix of `steps` steps completes."""
        return max(0, (steps - self.num_steps(1)) // self.stride + 1)

    @abstractmethod
    def interleave(self, frames: Tensor, hole: int = -1) -> Tensor:
        """Frames [B, K, T] of any type -> steps [B, S - 1, num_steps(T)]."""

    @abstractmethod
    def deinterleave(self, steps: Tensor) -> Tensor:
        """A prefix of steps [B, S - 1, L] of any type -> the frames that it completes [B, K, num_frames(L)].

        What stands in places without a code does not matter.
        """


@dataclass(frozen=True)
class Hidden:
    """Hidden states after the final norm, which the text and audio heads read."""

    text: Tensor  # [..., D]
    audio: Tensor  # [..., D]


class Engine(ABC):
    """Computation of hidden states and logits during generation. Sequences are kept in `Slots`.

    Several `Slots` may be open over one engine, each used by one thread at a time.
    """

    name: str
    """Name by which `--engine` chooses it."""
    weight_bytes: float
    """Bytes that one weight of the backbone takes in memory, for comparing a decode step with the memory's speed."""

    @abstractmethod
    def open(self, capacity: int) -> Slots:
        """Return empty slots for at most `capacity` sequences."""

    @abstractmethod
    def text_logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits [R, V] over the text stream's ids from hidden states [R, D]."""

    @abstractmethod
    def audio_logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits over the ids of all audio streams, side by side [R, sum of their V], from hidden states
        [R, D]."""


class Prefill(ABC):
    """Prompts on their way through the model; they join the running batch when none of their positions is left."""

    left: int
    """Positions that are still to be computed, the sum over all prompts."""

    @abstractmethod
    def advance(self, positions: int) -> None:
        """Compute further positions of every prompt, at most `positions` in all but at least one of each."""


class Slots(ABC):
    """The sequences of a running batch: slot i, for 0 <= i < `len(self)`, holds the keys and values of one sequence.

    A sequence's position p is always its own p-th one, whoever its neighbours are.
    """

    capacity: int
    """Sequences that there is room for."""
    lengths: list[int]
    """Positions that each sequence has so far; `len(self)` is the length of this list."""

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def prefill(self, prompts: Sequence[Tensor]) -> Prefill:
        """Begin the prefill of some prompts, each embeddings [L_i, D] with L_i > 0, outside of the running batch."""

    @abstractmethod
    def admit(self, prefill: Prefill) -> None:
        """Append the sequences of a prefill that has nothing left, in their order, as the last slots. There is room
        for them."""

    @abstractmethod
    def advance(self, embeddings: Tensor) -> Hidden:
        """Feed every sequence one further position, embeddings [R, D] with R = `len(self)`; return its hidden states
        [R, D]."""

    def step(
        self, embed: Callable[[int], Tensor], choose: Callable[[Hidden], None], variant: tuple[Any, ...] = ()
    ) -> None:
        """Do one decode step: `choose(advance(embed(R)))`.

        An engine may record all of it as one graph and replay that from then on. So both functions read and write
        tensors that stay at their places in memory, never ask the device for a value, and work for any number of rows
        from `len(self)` to `capacity`.

        Args:
            embed: number of rows -> what each is fed [rows, D].
            choose: reads the hidden states [rows, D] and writes the next tokens.
            variant: equal for steps in which both functions do the same operations on the same tensors.
        """
        choose(self.advance(embed(len(self))))

    @abstractmethod
    def copy(self, slot: int) -> None:
        """Append a copy of a sequence as the last slot."""

    @abstractmethod
    def crop(self, slot: int, length: int) -> None:
        """Forget all positions of a sequence but the first `length`, at least one and at most all that it has.

        Raises:
            ValueError: its cache cannot be cropped.
        """

    @abstractmethod
    def release(self, slot: int) -> None:
        """Drop a sequence; the last slot takes its number."""


def count_parameters(module: nn.Module, trainable_only: bool = False) -> int:
    """Number of parameters, those of tied modules once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def lengths_to_mask(lengths: Tensor, size: int | None = None) -> Tensor:
    """Lengths [B] -> mask [B, size], True where the position is inside."""
    size = int(lengths.max()) if size is None else size
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]
