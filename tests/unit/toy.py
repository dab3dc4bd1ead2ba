"""Tiny parts for tests: real classes where they are small enough, otherwise the simplest that fulfils the contract."""

from __future__ import annotations

import functools
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor, nn

from omnikit.adapters import ConcatAdapter
from omnikit.interfaces import AudioEncoder, Codec
from omnikit.llms.transformers_lm import TransformersLM
from omnikit.model import OmniLM
from omnikit.patterns import Delayed, Flattened, Parallel
from omnikit.streaming import EXACT, FramewiseStream

WORDS = ["the", "a", "cat", "dog", "sees", "hears", "one", "two", "three", "what", "is", "red", "blue", "yes", "no"]
PATTERNS = {"delayed": Delayed, "parallel": Parallel, "flattened": Flattened}


class ToyEncoder(AudioEncoder):
    """A toy audio encoder with one linear layer over frames of 160 samples."""

    dim, frame_rate, sample_rate = 12, 100.0, 16000

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(160, self.dim)

    def forward(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = wav[:, : wav.shape[1] // 160 * 160].unflatten(1, (-1, 160))
        return self.net(frames), lengths // 160

    def num_frames(self, samples: int) -> int:
        return samples // 160


class ToyCodec(Codec):
    """A toy audio codec whose codes are quantised sample values, one sample per code."""

    def __init__(self, num_codebooks: int = 3, codebook_size: int = 11):
        super().__init__()
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.frame_samples, self.sample_rate, self.lookahead = num_codebooks, 16000, 0

    def encode(self, wav: Tensor) -> Tensor:
        wav = nn.functional.pad(wav, (0, -wav.shape[1] % self.frame_samples))
        codes = ((wav + 1) / 2 * self.codebook_size).long().clamp(0, self.codebook_size - 1)
        return codes.unflatten(1, (-1, self.frame_samples)).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        return codes.transpose(1, 2).flatten(1) / self.codebook_size * 2 - 1

    def stream(self, batch_size: int = 1, mode: str = EXACT) -> FramewiseStream:
        return FramewiseStream(self, batch_size, mode)


@functools.cache
def tokenizer_file() -> str:
    """Return the path of a sentencepiece tokenizer of the words in `WORDS`, which is trained once per test run."""
    import tempfile

    folder = Path(tempfile.mkdtemp())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS), *WORDS] * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=80,
        hard_vocab_limit=False,
        model_type="bpe",
        minloglevel=2,
    )
    return str(folder / "tokenizer.model")


def toy_llm(dim: int = 32, layers: int = 2, heads: int = 2) -> TransformersLM:
    """Return a Qwen2 backbone of a few thousand parameters."""
    config = {
        "model_type": "qwen2",
        "hidden_size": dim,
        "intermediate_size": 2 * dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
    }
    return TransformersLM(config=config, tokenizer=tokenizer_file())


def toy_model(
    pattern: str = "delayed", *, tts_blocks: int = 0, num_codebooks: int = 3, dim: int = 32, **options
) -> OmniLM:
    """Return an untrained OmniLM of tiny parts, whose random weights are the same each time."""
    torch.manual_seed(0)
    return OmniLM(
        encoder=ToyEncoder(),
        adapter=functools.partial(ConcatAdapter, stride=2),
        llm=toy_llm(dim),
        codec=ToyCodec(num_codebooks),
        pattern=functools.partial(PATTERNS[pattern], **options),
        tts_blocks=tts_blocks,
    ).eval()
