"""Synthetic training data for benchmarks/train_step.py: a random system, fixed batches and manifest entries.

Letters: B batch, T frames, D width, S streams, L steps.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass, fields, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import omnikit
from omnikit.label_positions import LabelPositions, label_positions
from omnikit.model import OmniLM
from omnikit.skip_init import SkipInit
from omnikit.tasks import TASKS, Sample, Task, make_sample, prompt_length
from omnikit.tokens import IGNORE
from omnikit.train.operations import StepOperations

if TYPE_CHECKING:
    from omnikit.data.samples import Source

PARTS = {"encoder": "none", "adapter": "mlp", "llm": "qwen2_0.5b", "codec": "none", "llm.tokenizer": "bytes"}
"""Part names of the benchmarked system; it has no encoder and codec, as features and codes are precomputed."""
TTS_BLOCKS = 6
SMALL = {
    "llm.config.hidden_size": 128, "llm.config.intermediate_size": 512, "llm.config.num_hidden_layers": 4,
    "llm.config.num_attention_heads": 4, "llm.config.num_key_value_heads": 2, "llm.config.head_dim": 32,
    "llm.config.vocab_size": 16000,
}  # fmt: skip
"""Options of a backbone that is small enough for a CPU."""


@dataclass(frozen=True)
class MeasuredStage:
    """A training stage of recipes/VoiceAssistant/QA: its name, trainable parts and tasks."""

    name: str
    trainable: tuple[str, ...]
    tasks: tuple[str, ...]


NEW = ("new_text_embeddings", "new_audio_embeddings")
STAGES = (
    MeasuredStage("stage 1", ("adapter", "tts_adapter", *NEW), ("A1T1", "T1A1")),
    MeasuredStage("stage 3", ("adapter", "llm", "tts_adapter", *NEW), tuple(TASKS)),
)


@dataclass
class FixedBatch:
    """A batch without padding: every sample has L steps."""

    steps: Tensor  # [B, S, L]
    labels: Tensor  # [B, S, L]
    features: Tensor  # [B, T, D]
    lengths: Tensor  # [B]
    text: LabelPositions
    audio: LabelPositions

    def to(self, device: torch.device) -> FixedBatch:
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = (
                value.to(device) if isinstance(value, Tensor) else LabelPositions(*(one.to(device) for one in value))
            )
        return replace(self, **moved)

    @property
    def positions(self) -> int:
        """Number of positions in the batch, B * L."""
        return self.steps.shape[0] * self.steps.shape[2]


def build(device: torch.device, *, small: bool) -> OmniLM:
    """Build the benchmarked system, with random weights that are drawn on the device."""
    with SkipInit():
        model = omnikit.build(**PARTS, **(SMALL if small else {}), tts_blocks=TTS_BLOCKS if not small else 1)
    model.to(device)
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() > 1:
                    parameter.normal_(std=0.02)
                elif name == "bias":
                    parameter.zero_()
                else:
                    assert isinstance(module, nn.Module) and "Norm" in type(module).__name__, type(module)
                    parameter.fill_(1.0)
    return model


def fixed_batch(model: OmniLM, stage: MeasuredStage, rows: int, length: int, seed: int) -> FixedBatch:
    """Draw a batch of `rows` random samples of `length` steps; `seed` sets the task of the first, others cycle."""
    draw = torch.Generator().manual_seed(seed)
    tasks = [TASKS[name] for name in islice(cycle(stage.tasks), seed, seed + rows)]
    samples = [_sample(model, task, length, draw) for task in tasks]
    steps, labels = (torch.stack([getattr(sample, name) for sample in samples]) for name in ("steps", "labels"))
    lengths = torch.tensor([sample.audio_frames for sample in samples])
    features = torch.randn(rows, length, model.encoder.dim, generator=draw)
    return FixedBatch(
        steps, labels, features, lengths, label_positions(labels[:, :1]), label_positions(labels[:, 1:])
    )


def _sample(model: OmniLM, task: Task, length: int, draw: torch.Generator) -> Sample:
    """Draw a random sample of `length` steps for a task.

    A spoken answer has length / 8 text tokens. A written answer takes an eighth of the length for a transcript, a
    quarter for an answer to speech and three quarters for an answer to text.
    """
    last = model.pattern.end(len(model.pattern.carries) - 1, 0)
    if task.speaks:
        answer = length // 2 if task.given == "speech" else 7 * length // 8
        text = length // 8
    else:
        answer = text = length // 8 if task.text_mark == "asr" else length // 4 if task.given == "speech" else (
            3 * length // 4
        )
    given = length - prompt_length(0) - answer
    if task.text_forced:
        text = given
    ids = [torch.randint(0, model.llm.vocab_size, (n,), generator=draw).tolist() for n in (given, text)]
    frames = (answer - last) // model.pattern.stride
    shape = (model.codec.num_codebooks, frames)
    sample = make_sample(
        task, model.layout, model.pattern,
        question=ids[0] if task.given == "text" else None,
        audio_frames=given if task.given == "speech" else None,
        answer=ids[0] if task.text_forced else ids[1],
        codes=torch.randint(0, model.codec.codebook_size, shape, generator=draw) if task.speaks else None,
    )  # fmt: skip
    assert sample.steps.shape[1] == length, (task.name, sample.steps.shape)
    return sample


def step_operations(model: OmniLM, batch: FixedBatch) -> float:
    """Return the number of floating-point operations of one training step on a batch."""
    text, audio = (int((each.labels != IGNORE).any(dim=1).sum()) for each in (batch.text, batch.audio))
    rows, frames = batch.features.shape[:2]
    return StepOperations(model).count(
        sequences=rows, positions=batch.positions, text_labels=text, audio_labels=audio, frames=rows * frames
    )


def attention_operations(model: OmniLM, batch: FixedBatch) -> float:
    """Return the number of floating-point operations that attention takes in a training step."""
    return batch.positions * batch.steps.shape[2] * StepOperations(model).per_pair


class InMemory:
    """Encoder features in memory, in place of those in the files of a Parquet manifest."""

    def __init__(self, rows: list[bytes]):
        self.rows = rows

    def read(self, row: int, frames: int) -> torch.Tensor:
        """Return the features [T, D] (float16) in a row."""
        return torch.frombuffer(bytearray(self.rows[row]), dtype=torch.float16).reshape(frames, -1)


def recipe_sources(model: OmniLM, entries: int, letters: int = 4, folder: Path | None = None) -> list[Source]:
    """Return two synthetic sources: read speech, and spoken questions with answers.

    Features have 50 frames per second and codes 11.7. Lengths are drawn so that samples have at most about 800 steps,
    if texts have the default of 4 `letters` per second. Texts are made of 2000 words. Their token ids are memory-mapped
    from an index in `folder`; None = they are in memory.
    """
    from omnikit.data.manifest_reader import Codes, Features, ListedEntries, ManifestEntry
    from omnikit.data.samples import Source, codec_name
    from omnikit.data.source_index import PartMaker, build_index

    rng, draw = random.Random(0), torch.Generator().manual_seed(0)
    encoder = "synthetic"

    def features(seconds: float, table: InMemory) -> Features:
        frames = int(50 * seconds)
        values = torch.randn(frames, model.encoder.dim, generator=draw).half().numpy().tobytes()
        table.rows.append(values)
        return Features(encoder, frames, table, len(table.rows) - 1)

    def codes(seconds: float) -> Codes:
        frames = max(1, int(11.7 * seconds))
        shape = (model.codec.num_codebooks, frames)
        values = torch.randint(0, model.codec.codebook_size, shape, generator=draw, dtype=torch.int16).numpy()
        return Codes(codec_name(model), frames, values=values)

    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(2000)]

    def text(seconds: float) -> str:
        return " ".join(rng.choices(words, k=int(letters * seconds)))[: int(letters * seconds)]

    table, read, asked = InMemory([]), [], []
    for i in range(entries):
        seconds = rng.uniform(3, 14)
        fields = {"features": features(seconds, table), "codes1": codes(seconds), "duration": seconds}
        read.append(ManifestEntry(f"read-{i}", text(seconds), **fields))
        seconds, answer = rng.uniform(2, 6), rng.uniform(5, 25)
        fields = {"features": features(seconds, table), "codes": codes(answer), "duration": seconds}
        asked.append(ManifestEntry(f"asked-{i}", text(seconds), text(answer), **fields))
    make = PartMaker(model.llm.tokenizer, codec_name(model), encoder)
    return [
        Source(ListedEntries(entries), tasks, build_index(entries, make, folder and folder / name), name=name)
        for name, entries, tasks in (
            ("read", read, ("A1T1", "T1A1")), ("asked", asked, ("A1T2", "T1T2", "A1A2", "T1A2")),
        )
    ]  # fmt: skip
