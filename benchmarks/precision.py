"""Effect of reduced precision on logits, greedy tokens, transcripts and answers of a system, by engine and weight type.

    egs/mini/run.sh --stage 1 --stop_stage 1    # the mini corpus, three minutes
    python benchmarks/precision.py              # the mini system

Logits and tokens are compared on the steps of the float32 system's own spoken answers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from tqdm import tqdm

import omnikit
from omnikit.data.manifest_reader import ManifestEntry, read_manifest
from omnikit.engines import OPENVINO, TORCH, load_openvino
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.evaluate.asr import ALL, evaluate_split
from omnikit.evaluate.qa import count_right, read_questions, some
from omnikit.evaluate.result_tables import markdown_table, percent
from omnikit.evaluate.text_normalisation import normalizer
from omnikit.generate import Decoder, Decoding, Question
from omnikit.interfaces import Engine, Hidden, Prefill, Slots
from omnikit.model import OmniLM
from omnikit.offline.batches import by_model, gather
from omnikit.option_ranges import COUNT
from omnikit.sampling import Sampling
from omnikit.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
GREEDY = Sampling(temperature=0.0)
DECODING = Decoding(text=GREEDY, audio=GREEDY, max_steps=128)
SPLIT, QUESTIONS = "test-clean", "test_unseen"


@dataclass(frozen=True)
class EngineWeights:
    """An engine and the data type of its weights, as compared by the benchmark of precision."""

    engine: str
    weights: str

    def open(self, checkpoint: str | None) -> tuple[OmniLM, Engine]:
        """Load a checkpoint for this engine with its type of weights, and return the model and the engine."""
        if self.engine == TORCH:
            omni = omnikit.load(checkpoint, engine=TORCH, dtype=self.weights)
            return omni.model, omni.decoder.engine
        return load_openvino(checkpoint, weights=self.weights)


REFERENCE = EngineWeights(TORCH, "float32")
"""Engine and type of weights that serve as the reference for all others: torch with float32 weights."""
WAYS = (
    REFERENCE,
    EngineWeights(TORCH, "bfloat16"),
    *(EngineWeights(OPENVINO, weights) for weights in ("f32", "bf16", "int8")),
)
"""All engines and types of weights that are compared, the reference first."""


@dataclass
class DecodingTrace:
    """Embeddings that a model was fed for one answer, and the logits [1, V] of text and audio at each decode step."""

    prompt: Tensor  # [L, D]
    fed: list[Tensor] = field(default_factory=list)  # [1, D] for each decode step
    logits: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # text and audio, for each decode step


class TracingEngine(Engine):
    """An engine that wraps another one and stores the embeddings and logits of its sequences, one at a time."""

    def __init__(self, engine: Engine):
        self.engine, self.weight_bytes = engine, engine.weight_bytes
        self.text_logits, self.audio_logits = engine.text_logits, engine.audio_logits
        self.kept: list[DecodingTrace] = []

    def open(self, capacity: int) -> Slots:
        slots = self.engine.open(capacity)
        prefill, advance = slots.prefill, slots.advance

        def watched_prefill(prompts: Sequence[Tensor]) -> Prefill:
            self.kept.append(DecodingTrace(prompts[0]))
            return prefill(prompts)

        def watched_advance(embeddings: Tensor) -> Hidden:
            hidden = advance(embeddings)
            self.kept[-1].fed.append(embeddings.clone())
            self.kept[-1].logits.append(both_logits(self.engine, hidden))
            return hidden

        slots.prefill, slots.advance = watched_prefill, watched_advance
        return slots


def record(model: OmniLM, engine: Engine, entry: ManifestEntry) -> DecodingTrace:
    """Answer a question with speech, and return the embeddings and logits of all decode steps."""
    recorder = TracingEngine(engine)
    question = Question(wav=entry.a1.load(model.encoder.sample_rate))
    Decoder(model, recorder, decoding=DECODING).answers(TASKS["A1A2"], [question])
    return recorder.kept[0]


def both_logits(engine: Engine, hidden: Hidden) -> tuple[Tensor, Tensor]:
    """Return the text logits and the logits of all audio streams, [1, V] each, of hidden states [1, D]."""
    return engine.text_logits(hidden.text).float(), engine.audio_logits(hidden.audio).float()


@torch.inference_mode()
def compare(model: OmniLM, engine: Engine, recorded: list[DecodingTrace]) -> dict[str, str]:
    """Feed the embeddings of stored answers to another engine, and compare its logits and greedy tokens.

    Returns:
        Cells of the table: the error of the logits relative to their size (RMS), the shares of equal greedy tokens.
    """
    error = size = 0.0
    same: list[Tensor] = []
    for answer in recorded:
        slots = engine.open(1)
        prefill = slots.prefill([answer.prompt.to(model.dtype)])
        prefill.advance(prefill.left)
        slots.admit(prefill)
        for fed, expected in zip(answer.fed, answer.logits, strict=True):
            found = both_logits(engine, slots.advance(fed.to(model.dtype)))
            error += sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True))
            size += sum(float(logits.square().sum()) for logits in expected)
            same.append(best(model, *found) == best(model, *expected))
    agree = torch.stack(same).float().mean(dim=0)
    return {
        "logits, error %": f"{100 * (error / size) ** 0.5:.2g}",
        "text tokens that agree %": percent(100 * float(agree[0])),
        "audio tokens that agree %": percent(100 * float(agree[1:].mean())),
    }


def best(model: OmniLM, text: Tensor, audio: Tensor) -> Tensor:
    """Return the most likely id of each stream [S]."""
    return torch.cat([each.argmax(dim=-1) for each in (text, *audio.split(model.layout.sizes[1:], dim=-1))])


def scores(
    model: OmniLM, engine: Engine, utterances: list[ManifestEntry], questions: list[ManifestEntry]
) -> dict[str, str]:
    """Return the word error rate and the share of correct answers of a system, as in the recipes' evaluations."""
    normalize, decoder = normalizer("plain"), Decoder(model, engine, decoding=DECODING)
    with TemporaryDirectory() as folder:
        asr = evaluate_split(
            by_model(decoder, TASKS["A1T1"]), SPLIT, utterances,
            batch_size=16, normalize=normalize, groups={}, folder=Path(folder),
        )  # fmt: skip
    task = TASKS["A1A2"]
    given, skipped = gather(by_model(decoder, task), task, questions, batch_size=16, title=QUESTIONS)
    shares = count_right(task, questions, given, skipped, normalize)
    return {f"WER %, {SPLIT}": percent(asr.rates[ALL].wer), f"right %, {QUESTIONS}": percent(shares.percent)}


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="folder, shipped name or hub id of a system (default: mini)")
    folder = "folder of the mini corpus (default: egs/mini/data)"
    parser.add_argument("--data_folder", default=str(ROOT / "egs" / "mini" / "data"), help=folder)
    parser.add_argument("--limit", type=COUNT, default=100, help="number of utterances and of questions to score (100)")
    parser.add_argument("--answers", type=COUNT, default=10, help="number of answers whose logits are compared (10)")
    arguments = parser.parse_args()
    data = Path(arguments.data_folder)
    asked = {"manifest": data / "qa" / f"{QUESTIONS}.parquet", "answers": data / "qa" / "answers.parquet"}
    with TemporaryDirectory() as cache:
        utterances = some(read_manifest(data / "manifests" / f"{SPLIT}.csv"), arguments.limit)
        questions = some(read_questions(QUESTIONS, asked, cache), arguments.limit)
        model, engine = REFERENCE.open(arguments.checkpoint)
        asked = tqdm(questions[: arguments.answers], desc="spoken answers in float32")
        recorded = [record(model, engine, entry) for entry in asked]
        entries = []
        for way in WAYS:
            print(f"{way.engine}, {way.weights}", file=sys.stderr)
            model, engine = way.open(arguments.checkpoint)
            found = compare(model, engine, recorded) | scores(model, engine, utterances, questions)
            entries.append([f"{way.engine}, {way.weights}", *found.values()])
    print(f"{len(utterances)} utterances, {len(questions)} questions, {len(recorded)} answers compared\n")
    print(markdown_table(["", *found], entries))


if __name__ == "__main__":
    with bad_input_exits():
        main()
