"""Benchmark of making batches: CPU time per position of data set and collate function, against the earlier code.

    python benchmarks/loader.py            # a minute on one core
    python benchmarks/loader.py --quick    # half of it

Samples are made from synthetic entries in memory and padded to batches of up to 8192 positions, in one thread of one
process, as a worker process of a data loader does. The cases are spoken answers, whose codes are laid out by the
pattern; long texts, which the earlier code (benchmarks/earlier_loader.py) tokenized each time while their token ids now
come from the memory-mapped index; and spoken questions, whose features are padded. Both sides run in alternation;
figures are medians. Ratios are printed last; the exit status is 1 if codes or texts are not made at least twice as fast
as before.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.earlier_loader import earlier_collate, earlier_item  # noqa: E402
from benchmarks.training_material import build, recipe_sources  # noqa: E402
from omnikit.data.padding import STEPS, rounded  # noqa: E402
from omnikit.data.samples import Samples, collate_items, make_dataset  # noqa: E402
from omnikit.errors import ArgumentParser, bad_input_exits  # noqa: E402
from omnikit.evaluate.result_tables import markdown_table  # noqa: E402
from omnikit.interfaces import Tokenizer  # noqa: E402
from omnikit.llms.tokenizers import SentencePieceTokenizer, TransformersTokenizer  # noqa: E402
from omnikit.model import OmniLM  # noqa: E402
from omnikit.tasks import TASK_NAMES, TASKS  # noqa: E402

GOAL = 2.0
"""Minimum ratio of positions per CPU-second to those of the earlier code."""
POSITIONS = 8192
"""Maximum number of positions in a batch, padding included."""
VOCABULARY = 4000
"""Number of ids of the tokenizers that are trained on the synthetic texts."""
LETTERS = 60
"""Letters per second of speech in long texts."""


@dataclass(frozen=True)
class Case:
    """Samples of some tasks, with what makes their batches now and what made them before."""

    name: str
    samples: Samples
    now: Callable[[list[int]], object]
    before: Callable[[list[int]], object]
    has_goal: bool = True

    def batches(self) -> list[list[int]]:
        """Return all samples in batches of similar lengths."""
        lengths, batches = rounded(self.samples.lengths, STEPS), []
        for index in lengths.argsort().tolist():
            if batches and (len(batches[-1]) + 1) * lengths[index] <= POSITIONS:
                batches[-1].append(index)
            else:
                batches.append([index])
        return batches


def make_case(
    name: str, model: OmniLM, tokenizer: Tokenizer, entries: int, tasks: list[str], letters: int, folder: Path
) -> Case:
    """Return the case of some tasks; `folder` gets the index of the token ids, which the earlier code did not have."""
    model.llm.tokenizer = tokenizer
    sources = recipe_sources(model, entries, letters, folder)
    samples = make_dataset(model, sources, dict.fromkeys(tasks, 1.0))
    collate = collate_items(model)

    def now(batch: list[int]) -> object:
        return collate(samples.__getitems__(batch))

    def before(batch: list[int]) -> object:
        table, made = samples.table, []
        for index in batch:
            number = int(table.tasks[index])
            entry = sources[table.sources[index]].entries[int(table.entries[index])]
            made.append(earlier_item(model, entry, TASKS[TASK_NAMES[number]], number))
        return earlier_collate(*map(list, zip(*made, strict=True)), model.layout, model.encoder.dim, len(TASKS))

    return Case(name, samples, now, before, has_goal="features" not in name)


def texts_of(model: OmniLM) -> list[str]:
    """Return some of the long texts, from which tokenizers are trained."""
    entries = [entry for source in recipe_sources(model, 40, LETTERS) for entry in source.entries]
    return [text for entry in entries for text in (entry.t1, entry.t2) if text is not None]


def sentencepiece_tokenizer(texts: list[str], folder: Path) -> Tokenizer:
    """Return a tokenizer of sentencepiece that is trained on texts."""
    import sentencepiece

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=trained, vocab_size=VOCABULARY, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    path = folder / "tokenizer.model"
    path.write_bytes(trained.getvalue())
    return SentencePieceTokenizer(str(path))


def fast_tokenizer(texts: list[str], folder: Path) -> Tokenizer:
    """Return a fast tokenizer of transformers that is trained on texts: byte-level BPE, as of Qwen2."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    trained.save(str(folder / "tokenizer.json"))
    return TransformersTokenizer(str(folder))


def measure(case: Case, pairs: int) -> dict:
    """Return the microseconds of CPU time per position of both sides, and their ratio, as medians of pairs."""
    batches = case.batches()
    positions = int(case.samples.lengths.sum())
    check(case, batches[0])
    times = [(cpu_time(case.before, batches), cpu_time(case.now, batches)) for _ in range(pairs)]
    before, now = (1e6 * median(column) / positions for column in zip(*times, strict=True))
    frames = sum(case.now(batch).sizes.feature_frames for batch in batches)
    return {
        "name": case.name, "goal": GOAL if case.has_goal else None, "positions": positions, "batches": len(batches),
        "before": before, "now": now, "ratio": median(one / two for one, two in times),
        "frames_per_second": frames / median(two for _, two in times),
    }  # fmt: skip


def check(case: Case, batch: list[int]) -> None:
    """Assert that both sides make the same batch."""
    now, before = case.now(batch), case.before(batch)
    assert torch.equal(now.steps, before.steps) and torch.equal(now.features.float(), before.features)
    for ours, theirs in zip((*now.text, *now.audio), (*before.text, *before.audio), strict=True):
        assert torch.equal(ours, theirs)


def cpu_time(make: Callable[[list[int]], object], batches: list[list[int]]) -> float:
    """Return the CPU seconds that making all batches takes."""
    began = time.process_time()
    for batch in batches:
        make(batch)
    return time.process_time() - began


def report(figures: list[dict]) -> int:
    """Print the figures and, last, the ratios; return the number of missed goals."""
    header = ["case", "positions", "us per position before", "now", "positions per CPU-second", "frames per CPU-second"]
    rows = [
        [
            one["name"], f"{one['positions']:,}", f"{one['before']:.2f}", f"{one['now']:.2f}",
            f"{1e6 / one['now']:,.0f}", f"{one['frames_per_second']:,.0f}" if one["frames_per_second"] else "",
        ]
        for one in figures
    ]  # fmt: skip
    print(markdown_table(header, rows), end="\n\n")
    for one in figures:
        goal = "no goal" if one["goal"] is None else f"goal {one['goal']:.0f}"
        print(f"{one['name']}: {one['ratio']:.1f}x ({goal})")
    return sum(one["goal"] is not None and one["ratio"] < one["goal"] for one in figures)


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer entries and repetitions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    entries, pairs = (100, 3) if options.quick else (200, 7)
    model = build(torch.device("cpu"), small=True)
    texts, own = texts_of(model), model.llm.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        fast, pieces = fast_tokenizer(texts, Path(folder)), sentencepiece_tokenizer(texts, Path(folder))
        cases = [
            ("codes of spoken answers", own, ["T1A1", "T1A2"], 4),
            ("long texts, transformers", fast, ["T1T2"], LETTERS),
            ("long texts, sentencepiece", pieces, ["T1T2"], LETTERS),
            ("features of questions", own, ["A1T1", "A1T2"], 4),
        ]
        figures = []
        for number, (name, tokenizer, tasks, letters) in enumerate(cases):
            index = Path(folder) / str(number)
            figures.append(measure(make_case(name, model, tokenizer, entries, tasks, letters, index), pairs))
    return int(report(figures) > 0)


if __name__ == "__main__":
    with bad_input_exits():
        status = main()
    sys.exit(status)
