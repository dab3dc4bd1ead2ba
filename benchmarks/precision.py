"""What fewer bits cost: logits, greedy tokens, transcripts and answers of a system, by engine and precision.

    egs/mini/run.sh --stage 1 --stop_stage 1    # the mini corpus, three minutes
    python benchmarks/precision.py              # of the mini system

Logits and tokens are compared on the steps of the float32 system's own spoken answers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import omnikit
from omnikit.data.rows import Row, read_manifest
from omnikit.engines import OPENVINO, TORCH, load_openvino
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.evaluate.asr import ALL, evaluate_split
from omnikit.evaluate.batches import by_model, gather, hear
from omnikit.evaluate.qa import count_right, read_questions, some
from omnikit.evaluate.tables import markdown_table, percent
from omnikit.evaluate.text import normalizer
from omnikit.generate import Decoding, generate
from omnikit.model import Engine, Hidden, OmniLM, Speech
from omnikit.ranges import COUNT
from omnikit.sampling import Sampling
from omnikit.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
GREEDY = Sampling(temperature=0.0)
DECODING = Decoding(text=GREEDY, audio=GREEDY, max_steps=128)
SPLIT, QUESTIONS = "test-clean", "test_unseen"


@dataclass(frozen=True)
class Way:
    """An engine, and in what it keeps the weights."""

    engine: str
    weights: str

    def open(self, checkpoint: str | None) -> tuple[OmniLM, Engine]:
        if self.engine == TORCH:
            model = omnikit.load(checkpoint, dtype=self.weights).model
            return model, model
        return load_openvino(checkpoint, weights=self.weights)


REFERENCE = Way(TORCH, "float32")
WAYS = (REFERENCE, Way(TORCH, "bfloat16"), *(Way(OPENVINO, weights) for weights in ("f32", "bf16", "int8")))


@dataclass(frozen=True)
class Call:
    """A call of an engine and the logits of its last position, by stream."""

    steps: Tensor  # [1, S, L]
    speech: Speech | None
    options: dict[str, Tensor]
    logits: list[Tensor]  # S of [1, V]


class Recorder:
    """An `Engine` that keeps what the model is asked and what it finds."""

    def __init__(self, model: OmniLM):
        self.model, self.calls = model, []
        self.new_cache, self.text_logits, self.audio_logits = model.new_cache, model.text_logits, model.audio_logits

    def __call__(self, steps: Tensor, speech: Speech | None = None, *, cache: Any, **options: Tensor) -> Hidden:
        hidden = self.model(steps, speech, cache=cache, **options)
        self.calls.append(Call(steps, speech, options, last_logits(self.model, hidden)))
        return hidden


def last_logits(engine: Engine, hidden: Hidden) -> list[Tensor]:
    """Hidden [1, L, D] -> logits of the last position by stream, S of [1, V]."""
    return [engine.text_logits(hidden.text[:, -1]), *engine.audio_logits(hidden.audio[:, -1])]


def spoken_answers(model: OmniLM, rows: Sequence[Row]) -> list[list[Call]]:
    """The calls that a model's answer to each question takes."""
    found = []
    for row in tqdm(rows, desc="spoken answers in float32"):
        recorder = Recorder(model)
        question = hear(model, [row.a1.load(model.encoder.sample_rate)])[0]
        for _ in generate(model, TASKS["A1A2"], [question], decoding=DECODING, engine=recorder):
            pass
        found.append(recorder.calls)
    return found


@torch.inference_mode()
def compare(engine: Engine, recorded: list[list[Call]]) -> dict[str, str]:
    """The same calls by another engine: error of the logits relative to their size (RMS), and greedy tokens that
    agree."""
    error = size = 0.0
    same: list[Tensor] = []
    for calls in recorded:
        cache = engine.new_cache()
        for call in calls:
            found = last_logits(engine, engine(call.steps, call.speech, cache=cache, **call.options))
            error += sum(float((a.float() - b).square().mean()) for a, b in zip(found, call.logits, strict=True))
            size += sum(float(logits.square().mean()) for logits in call.logits)
            pairs = zip(found, call.logits, strict=True)
            same.append(torch.cat([a.argmax(dim=-1) == b.argmax(dim=-1) for a, b in pairs]))
    agree = torch.stack(same).float().mean(dim=0)
    return {
        "logits, error %": f"{100 * (error / size) ** 0.5:.2g}",
        "text tokens that agree %": percent(100 * float(agree[0])),
        "audio tokens that agree %": percent(100 * float(agree[1:].mean())),
    }


def scores(model: OmniLM, engine: Engine, utterances: list[Row], questions: list[Row]) -> dict[str, str]:
    """Word error rate and right answers, as the recipes' evaluations count them."""
    normalize, options = normalizer("plain"), {"decoding": DECODING, "engine": engine}
    with TemporaryDirectory() as folder:
        asr = evaluate_split(
            by_model(model, TASKS["A1T1"], **options), SPLIT, utterances,
            batch_size=16, normalize=normalize, groups={}, folder=Path(folder),
        )  # fmt: skip
    task = TASKS["A1A2"]
    given, skipped = gather(by_model(model, task, **options), task, questions, batch_size=16, title=QUESTIONS)
    shares = count_right(task, questions, given, skipped, normalize)
    return {f"WER %, {SPLIT}": percent(asr.rates[ALL].wer), f"right %, {QUESTIONS}": percent(shares.percent)}


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a folder or hub id; none = the shipped mini system")
    parser.add_argument("--data_folder", default=str(ROOT / "egs" / "mini" / "data"), help="the mini corpus")
    parser.add_argument("--limit", type=COUNT, default=100, help="utterances and questions that are scored")
    parser.add_argument("--answers", type=COUNT, default=10, help="answers whose logits are compared")
    arguments = parser.parse_args()
    data = Path(arguments.data_folder)
    asked = {"manifest": data / "qa" / f"{QUESTIONS}.parquet", "answers": data / "qa" / "answers.parquet"}
    with TemporaryDirectory() as cache:
        utterances = some(read_manifest(data / "manifests" / f"{SPLIT}.csv"), arguments.limit)
        questions = some(read_questions(QUESTIONS, asked, cache), arguments.limit)
        recorded = spoken_answers(REFERENCE.open(arguments.checkpoint)[0], questions[: arguments.answers])
        rows = []
        for way in WAYS:
            print(f"{way.engine}, {way.weights}", file=sys.stderr)
            model, engine = way.open(arguments.checkpoint)
            found = compare(engine, recorded) | scores(model, engine, utterances, questions)
            rows.append([f"{way.engine}, {way.weights}", *found.values()])
    print(f"{len(utterances)} utterances, {len(questions)} questions, {len(recorded)} answers compared\n")
    print(markdown_table(["", *found], rows))


if __name__ == "__main__":
    with bad_input_exits():
        main()
