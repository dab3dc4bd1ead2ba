"""Base classes of all parts. `OmniLM` uses these classes only, never a concrete part.

Letters: B batch, N samples, T frames, D width, K codebooks, S streams, L steps, V vocabulary.

Every part that can start from trained weights takes a `weights` argument (a file, a folder or a hub id; `None` =
random). Constructors only build the network; `load_weights` reads the weights, so that a recipe which mentions two
codecs does not load both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from omnikit.streaming import EXACT, DecodeStream, DecodeStreams, SeparateStreams

if TYPE_CHECKING:
    from omnikit.linear_cross_entropy import Head
    from omnikit.public_weights import PublicWeights


class Part(nn.Module):
    """Base class of the components of a system that may start from trained weights: encoder, backbone and codec."""

    weights: str | None = None
    """File, folder or name of the trained weights that `load_weights` reads; None = the weights stay random.

    A name, `owner/name` of the hub or one that the part's library knows, means public weights. They are read from the
    folder in the environment variable `OMNIKIT_WEIGHTS` if it has them (`<name>.pt`, `<name>.safetensors` or a folder
    `<name>`), else through that library. A checkpoint stores this name with a fingerprint in place of the tensors, as
    long as these have not been trained further.
    """
    public: PublicWeights | None = None
    """Public weights that this component was filled with; None = its weights are its own."""

    def load_weights(self) -> None:
        """Read this component's weights from the file, folder or hub id in `self.weights`; do nothing if it is `None`.

        Raises:
            ValueError: the file is missing or does not fit this part; the message names the file and the differences.
        """
        if self.weights is not None:
            from omnikit.public_weights import located
            from omnikit.weights import load_into

            load_into(self, located(self.weights))


class AudioEncoder(Part, ABC):
    """An encoder that turns waveforms into sequences of features."""

    dim: int
    """Width D of a feature."""
    frame_rate: float
    """Number of features per second of speech (Hz)."""
    sample_rate: int
    """Sample rate that input waveforms must have (Hz)."""
    max_seconds: float | None = None
    """Maximum length in seconds of a recording; None = any length."""

    @abstractmethod
    def forward(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode waveforms [B, N] in -1..1 to features [B, T, D], returned with their lengths [B] in frames.

        `lengths` [B] counts the samples of each waveform. Padding never changes the features of a recording.
        """

    def num_frames(self, samples: int) -> int:
        """Return the number of features T of a recording of N samples without encoding it.

        An encoder that does not implement this can be used in training only with features computed beforehand.

        Raises:
            ValueError: the encoder takes no recording of that length.
            NotImplementedError: the encoder has to encode a recording to know.
        """
        raise NotImplementedError


class Adapter(nn.Module, ABC):
    """A network that maps encoder features to the backbone's width, built as `adapter(dim_in=..., dim_out=...)`."""

    stride: int = 1
    """Number of encoder frames that are combined to one position."""

    @abstractmethod
    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [B, T, D_in] to [B, ceil(T / stride), D_out], returned with their lengths [B] in positions.

        `lengths` [B] counts the frames of each recording.
        """


class Tokenizer(ABC):
    """A tokenizer that converts text to ids and back."""

    vocab_size: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of a text.

        Raises:
            ValueError: the vocabulary lacks some of its characters; the message names them.
        """

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text; subclasses may encode many texts at once where that is faster.

        Raises:
            ValueError: see `encode`.
        """
        return [self.encode(text) for text in texts]

    @abstractmethod
    def decode(self, ids: list[int]) -> str: ...

    @abstractmethod
    def save(self, folder: str) -> None:
        """Write the tokenizer's files to a checkpoint folder, from which they are read when it is loaded."""


class Backbone(Part, ABC):
    """A causal language model, split into embedding table, blocks, final norm and head."""

    dim: int
    vocab_size: int
    tokenizer: Tokenizer
    embedding_std: float
    """Standard deviation of the embeddings, with which the embeddings of new ids are initialised, too."""
    max_positions: int | None = None
    """Maximum number of positions of a prompt; None = no limit is known."""

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings [..., D] of ids [...]."""

    @abstractmethod
    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        cache: Any = None,
        sequences: Tensor | None = None,
    ) -> Tensor:
        """Compute hidden states [B, L, D] *before* the final norm from embeddings [B, L, D].

        A backbone without the argument `sequences` cannot be trained with `--pack true`.

        Args:
            embeddings: [B, L, D].
            positions: position of each step in its sequence [B, L].
            mask: [B, L_cached + L], 1 where a position may be attended to; None = all may.
            cache: KV cache from `new_cache`, which is extended; None = no positions were computed before.
            sequences: number of the sequence at each position [B, L] if rows are packed, given without mask and cache:
                a position attends only to earlier ones of the same number. None = each row is one sequence.
        """

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """Apply the final norm to hidden states [..., D]."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Compute text logits [..., V] from normed hidden states [..., D]."""

    def linear_head(self) -> Head | None:
        """Return the linear layer that `head` computes, so that training need not store all logits; None = unknown."""
        return None

    @abstractmethod
    def new_cache(self) -> Any:
        """Return an empty KV cache.

        Sequences are decoded in one batch if the cache exposes its keys and values, see `omnikit.kv_cache.can_join`;
        otherwise each is decoded by itself.
        """

    @abstractmethod
    def blocks(self, n: int) -> nn.Module:
        """Return a stack of `n` new blocks of this backbone's kind with a final norm of its own.

        It is called as `(hidden, positions, mask, cache) -> normed hidden`, with `sequences` if rows are packed, and
        has a `new_cache()` like the backbone.
        """


class Codec(Part, ABC):
    """An audio codec whose codes form a rectangular matrix [B, K, T], whatever its internal structure."""

    num_codebooks: int
    """Number K of codes per frame, which is the number of audio streams of the parallel patterns."""
    codebook_size: int
    sample_rate: int
    """Sample rate of the waveforms that are encoded and decoded (Hz)."""
    lookahead: int
    """Maximum number of samples by which an exact decode stream lags behind the frames given to it."""
    frame_samples: ClassVar[int] | int
    """Number of samples per frame."""
    encodes_padded: ClassVar[bool] = False
    """Whether silence appended to a waveform changes none of its codes, so that different lengths form one batch."""

    @property
    def frame_rate(self) -> float:
        """Number of frames per second (Hz)."""
        return self.sample_rate / self.frame_samples

    @abstractmethod
    def encode(self, wav: Tensor) -> Tensor:
        """Encode waveforms [B, N] in -1..1 to codes [B, K, ceil(N / frame_samples)], int64."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, T] to waveforms [B, T * frame_samples].

        Raises:
            ValueError: a code is outside the codebook.
        """

    @abstractmethod
    def stream(self, batch_size: int = 1, mode: str = EXACT) -> DecodeStream:
        """Return a new decode stream in one of `omnikit.streaming.MODES`.

        `exact`: the joined results of `push` and `finish` equal `decode` of the joined codes. `low_latency`: each
        `push` returns as many samples as its codes cover, and those that depend on later codes are estimated; a codec
        that cannot do this, or lags little anyway, streams exactly in this mode, too.

        Raises:
            ValueError: the mode is unknown.
        """

    def streams(self, mode: str = EXACT) -> DecodeStreams:
        """Return a set of decode streams that begin and end at different times, in one of `omnikit.streaming.MODES`.

        Raises:
            ValueError: the mode is unknown.
        """
        return SeparateStreams(self, mode)

    def check_codes(self, codes: Tensor) -> None:
        """Refuse a tensor that is not codes [B, K, T] of whole numbers inside the codebook.

        Raises:
            ValueError: type, shape or a code is wrong; the message says which.
        """
        if codes.is_floating_point() or codes.is_complex() or codes.dtype in (torch.uint8, torch.int8, torch.int16):
            raise ValueError(f"codes must be int64 or int32, got {codes.dtype}")
        if codes.dim() != 3 or codes.shape[1] != self.num_codebooks:
            raise ValueError(f"codes must be [B, {self.num_codebooks}, T], got {list(codes.shape)}")
        if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) < self.codebook_size):
            bad = codes[(codes < 0) | (codes >= self.codebook_size)][0].item()
            raise ValueError(f"code {bad} is outside the codebook (0..{self.codebook_size - 1})")


class Pattern(ABC):
    """A map that says at which step and in which audio stream each code stands. Built as `pattern(num_codebooks=K)`.

    It is a pure index map: it moves values and never looks at them. `hole` fills the places that carry no code.

    All frames have the same layout: frame t stands where frame 0 stands, `stride * t` steps later. In audio stream s it
    takes up the steps from `first[s] + stride * t` to `first[s] + stride * (t + 1) - 1`, and the first of them carries
    a code.
    """

    num_codebooks: int
    """Number K of codebooks of the codec."""
    carries: tuple[tuple[int, ...], ...]
    """Codebooks that each audio stream carries, in the order in which their codes stand in a frame.

    Each codebook is carried by exactly one stream.
    """
    first: Sequence[int]
    """Answer step of the first code of each audio stream."""
    stride: int
    """Number of answer steps from one frame to the next."""

    @property
    def max_delay(self) -> int:
        """Number of steps from the first answer step to the first one at which every audio stream has begun."""
        return max(self.first)

    @abstractmethod
    def codebook_at(self, step: int) -> list[int]:
        """Return the codebook that each audio stream carries at answer step `step`; -1 where it carries none.

        From step `num_steps(1)` on this repeats every `stride` steps.
        """

    def codebooks(self, steps: int) -> Tensor:
        """Return the codebook that each audio stream carries at the answer steps 0 .. L - 1 as a table [S - 1, L]."""
        table = np.full((len(self.carries), steps), -1)
        for book, (stream, first) in enumerate(self._first_codes):
            table[stream, first :: self.stride] = book
        return torch.from_numpy(table)

    def place(self, frames: np.ndarray, steps: np.ndarray) -> None:
        """Write the values of frames [K, T] to the places of their codes in steps [S - 1, L], in place.

        Places without a code keep their values. L must be at least `num_steps(T)`.
        """
        span = self.stride * frames.shape[1]
        for book, (stream, first) in enumerate(self._first_codes):
            steps[stream, first : first + span : self.stride] = frames[book]

    @cached_property
    def _first_codes(self) -> list[tuple[int, int]]:
        """Audio stream and answer step of the first code of each codebook [K]."""
        found: dict[int, tuple[int, int]] = {}
        for step in range(self.num_steps(1)):
            for stream, book in enumerate(self.codebook_at(step)):
                if book >= 0:
                    found.setdefault(book, (stream, step))
        return [found[book] for book in range(self.num_codebooks)]

    def end(self, stream: int, frames: int) -> int:
        """Return the answer step at which the end mark of an audio stream stands after `frames` frames.

        This is where the stream's next frame would begin.
        """
        return self.first[stream] + self.stride * frames

    @abstractmethod
    def num_steps(self, frames: int) -> int:
        """Return the number of steps from the first answer step to the last code of `frames` frames; 0 for no frame."""

    def num_frames(self, steps: int) -> int:
        """Return the number of frames whose codes all stand in the first `steps` answer steps."""
        return max(0, (steps - self.num_steps(1)) // self.stride + 1)

    @abstractmethod
    def interleave(self, frames: Tensor, hole: int = -1) -> Tensor:
        """Lay out frames [B, K, T] of any type as steps [B, S - 1, num_steps(T)], with `hole` where no code stands."""

    @abstractmethod
    def deinterleave(self, steps: Tensor) -> Tensor:
        """Extract the frames [B, K, num_frames(L)] whose codes all stand in a prefix of steps [B, S - 1, L].

        The steps are those of an answer and can have any type; values at places without a code are ignored.
        """


@dataclass(frozen=True)
class Hidden:
    """Hidden states after the final norm, from which the text and audio heads compute logits."""

    text: Tensor  # [..., D]
    audio: Tensor  # [..., D]


class Engine(ABC):
    """Implementation that computes hidden states and logits during generation; its sequences live in `Slots`.

    Several `Slots` may be open on one engine, each used by one thread at a time.
    """

    name: str
    """Name by which `--engine` chooses this engine."""
    weight_bytes: float
    """Bytes per backbone weight in memory, used to relate the time of a decode step to the memory bandwidth."""
    parks: ClassVar[bool] = False
    """Whether the slots of this engine can park sequences and continue them, as conversations need it."""

    @abstractmethod
    def open(self, capacity: int) -> Slots:
        """Return an empty set of slots with room for `capacity` sequences."""

    @abstractmethod
    def text_logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits [R, V] over the text stream's ids from hidden states [R, D] of R sequences."""

    @abstractmethod
    def audio_logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits over the ids of all audio streams from hidden states [R, D] of R sequences.

        The streams' logits stand side by side: [R, sum of their V].
        """


class Prefill(ABC):
    """A batch of prompts being prefilled, which can join the running batch once all their positions are computed."""

    left: int
    """Number of prompt positions that are still to be computed, summed over all prompts."""

    @abstractmethod
    def advance(self, positions: int) -> None:
        """Compute further positions of every prompt: at least one of each, otherwise at most `positions` in total."""


class Parked(ABC):
    """The KV cache of one sequence outside of a running batch, which a later prompt can continue.

    A prefill that continues it reads it without changing it.
    """

    length: int
    """Number of positions."""

    @abstractmethod
    def crop(self, length: int) -> None:
        """Drop all positions but the first `length`, at least one and at most all that it has.

        Raises:
            ValueError: the KV cache cannot be cropped.
        """


class Slots(ABC):
    """The sequences of a running batch: slot i, for 0 <= i < `len(self)`, holds the KV cache of one sequence.

    Positions count from the start of each sequence, independently of the other slots.
    """

    capacity: int
    """Maximum number of sequences that the running batch can hold."""
    lengths: list[int]
    """Current number of positions of each sequence in the running batch; `len(self)` is the length of this list."""

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def prefill(self, prompts: Sequence[Tensor], after: Sequence[Parked | None] | None = None) -> Prefill:
        """Begin the prefill of prompts, each embeddings [L_i, D] with L_i > 0, outside of the running batch.

        Args:
            prompts: embeddings of the positions to compute.
            after: for each prompt, the parked sequence of this engine whose last position it follows; None = it begins
                a sequence. Engines whose `parks` is False need not take this argument.
        """

    @abstractmethod
    def admit(self, prefill: Prefill) -> None:
        """Append the sequences of a completed prefill, in their order, as the last slots.

        The caller makes sure that there is room for them.
        """

    @abstractmethod
    def advance(self, embeddings: Tensor) -> Hidden:
        """Compute one further position of every sequence, from embeddings [R, D] to hidden states [R, D].

        R is the number of sequences, `len(self)`.
        """

    def step(
        self, embed: Callable[[int], Tensor], choose: Callable[[Hidden], None], variant: tuple[Any, ...] = ()
    ) -> None:
        """Do one decode step of the running batch: `choose(advance(embed(R)))` with R = `len(self)`.

        An engine may record all of it as one graph and replay that from then on. So both functions read and write
        tensors that stay at their places in memory, never read a value back from the device, and work for any number of
        sequences from `len(self)` to `capacity`.

        Args:
            embed: maps a number of sequences R to the embeddings [R, D] that they are fed.
            choose: reads the hidden states [R, D] and writes the next tokens.
            variant: key that is equal for steps in which both functions do the same operations on the same tensors.
        """
        choose(self.advance(embed(len(self))))

    @abstractmethod
    def copy(self, slot: int) -> None:
        """Append a copy of the sequence in a slot as the last slot."""

    @abstractmethod
    def release(self, slot: int) -> None:
        """Free a slot; the last slot takes its number."""

    def park(self, slot: int) -> Parked:
        """Take a sequence out of the running batch and return its KV cache; the slot is released.

        Raises:
            ValueError: the engine cannot store sequences outside of a running batch.
        """
        raise ValueError(f"{type(self).__name__}: cannot store a sequence outside of the running batch")


def count_parameters(module: nn.Module, trainable_only: bool = False) -> int:
    """Return the number of parameters of a module, counting tied ones once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def lengths_to_mask(lengths: Tensor, size: int | None = None) -> Tensor:
    """Return a mask [B, size] that is True inside the first `lengths` [B] positions of each row."""
    size = int(lengths.max()) if size is None else size
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]
