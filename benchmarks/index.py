"""Benchmark of starting a training: the index of texts at a first and at a later start, and reads of single entries.

    python benchmarks/index.py            # 100,000 entries, two minutes on two cores
    python benchmarks/index.py --quick    # 20,000 entries, half a minute

Two manifests of synthetic entries are read: questions and answers as texts in `.jsonl`, and in Parquet with codes and
features, of which each entry has few, since a start reads none. The earlier code (benchmarks/earlier_index.py) measured
all samples at every start; a part of the entries is enough to time it. Starts are timed without imports. The last
table shows reads of ids, codes and features of true size, in random order, from files in the memory of the system,
where features lie as `omnikit tokenize` writes them and in Parquet of other programs. Ratios are printed last; the exit
status is 1 if a later start takes more than 5 s or than the earlier code.
"""

from __future__ import annotations

import json
import os
import random
import string
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402

from benchmarks.earlier_index import earlier_measures  # noqa: E402
from benchmarks.loader import fast_tokenizer  # noqa: E402
from benchmarks.training_material import build  # noqa: E402
from omnikit.data.array_cache import fingerprint  # noqa: E402
from omnikit.data.manifest_reader import read_manifest  # noqa: E402
from omnikit.data.manifest_writer import ManifestWriter  # noqa: E402
from omnikit.data.samples import Samples, codec_name, make_dataset  # noqa: E402
from omnikit.data.sources import read_sources  # noqa: E402
from omnikit.errors import ArgumentParser, bad_input_exits  # noqa: E402
from omnikit.evaluate.result_tables import markdown_table  # noqa: E402
from omnikit.model import OmniLM  # noqa: E402
from omnikit.tasks import TASK_NAMES  # noqa: E402

GOAL = 5.0
"""Maximum seconds of a later start."""
STARTS = 3
"""Number of later starts, of which the fastest counts."""
GROUP = 256
"""Entries in a row group, as many as `omnikit tokenize` encodes together."""
WORDS = ["".join(random.Random(i).choices(string.ascii_lowercase, k=2 + i % 8)) for i in range(2000)]


@dataclass(frozen=True)
class IndexBenchSizes:
    """Sizes of the benchmark: entries of a manifest, those that the earlier code measures, frames of large features."""

    entries: int
    earlier: int
    frames: int


def text(number: int, words: int) -> str:
    return " ".join(random.Random(number).choices(WORDS, k=words))


def write_texts(path: Path, entries: int) -> Path:
    """Write a manifest of texts: a question of 12 words and an answer of 25 for each entry."""
    lines = (json.dumps({"id": f"r{i}", "t1": text(i, 12), "t2": text(-i, 25)}) for i in range(entries))
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def write_codes(path: Path, model: OmniLM, entries: int, *, frames: tuple[int, int], width: int) -> Path:
    """Write a Parquet manifest with codes and features.

    Args:
        frames: number of frames of codes and of features.
        width: width of a feature.
    """
    draw, encoder, books = np.random.default_rng(0), fingerprint(model.encoder), model.codec.num_codebooks
    codes = draw.integers(0, model.codec.codebook_size, (64, books, frames[0])).astype(np.int16)
    features = [each.tobytes() for each in draw.standard_normal((64, frames[1], width)).astype("<f2")]
    fields = ["id", "duration", "t1", "t2", "codes", "codec", "features", "frames", "encoder"]
    names = {"codec": codec_name(model), "encoder": encoder, "frames": frames[1], "duration": frames[1] / 50}
    with ManifestWriter(path, fields) as writer:
        for begin in range(0, entries, GROUP):
            writer.write([
                {
                    "id": f"r{i}", "t1": text(i, 12), "t2": text(-i, 25), "codes": codes[i % 64],
                    "features": features[i % 64], **names,
                }
                for i in range(begin, min(begin + GROUP, entries))
            ])  # fmt: skip
    return path


def start(model: OmniLM, path: Path, tasks: list[str], cache: Path) -> Samples:
    """Read a manifest as a training does when it starts."""
    mix = dict.fromkeys(tasks, 1.0)
    sources = {"source": {"manifest": path, "tasks": tasks}}
    return make_dataset(model, read_sources(sources, model, tasks=mix, cache_folder=cache, features="cached"), mix)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that a function takes, and the CPU seconds, those of its processes included."""
    wall, before = time.perf_counter(), os.times()
    run()
    after = os.times()
    return time.perf_counter() - wall, sum(after[:4]) - sum(before[:4])


def measure_start(name: str, model: OmniLM, path: Path, tasks: list[str], cache: Path, plan: IndexBenchSizes) -> dict:
    """Return the seconds of the first and of later starts, and those of the earlier code for as many entries."""
    first = timed(lambda: start(model, path, tasks, cache))
    later = [timed(lambda: start(model, path, tasks, cache)) for _ in range(STARTS)]
    samples = start(model, path, tasks, cache)
    entries = read_manifest(path, cache / "tables")
    some, found = entries[: plan.earlier], {}

    def earlier() -> None:
        found.update(earlier_measures(model, some, tasks, codec_name(model), fingerprint(model.encoder)))

    per_entry = timed(earlier)[1] / len(some)
    for task, numbers in found.items():
        _check(samples, TASK_NAMES.index(task), np.array(numbers, np.int64).reshape(-1, 4))
    return {
        "name": name, "entries": len(entries), "first": first, "later": tuple(map(min, zip(*later, strict=True))),
        "per_entry": per_entry, "earlier": per_entry * len(entries),
    }  # fmt: skip


def _check(samples: Samples, task: int, expected: np.ndarray) -> None:
    """Assert that the samples of a task are as long, and have as many labels, as the earlier code says."""
    table = samples.table.select(samples.table.tasks == task)
    found = np.stack([table.entries, table.lengths, table.text_labels, table.audio_labels], axis=1)[: len(expected)]
    assert len(expected) and (found == expected).all()


def measure_reads(path: Path, cache: Path, most: int) -> dict[str, float]:
    """Return the microseconds of reading id, codes and features of an entry of a Parquet manifest, in random order.

    Args:
        most: maximum number of entries that are read for each figure.
    """
    entries = read_manifest(path, cache)
    order = random.Random(0).sample(range(len(entries)), min(most, len(entries)))
    readers = {"id": entries.id_of, "codes": lambda i: entries.codes_of(i, "codes"), "features": entries.features_of}
    return {name: 1e6 * median(_per_read(read, order) for _ in range(3)) for name, read in readers.items()}


def _per_read(read: Callable[[int], object], order: list[int]) -> float:
    began = time.perf_counter()
    for entry in order:
        read(entry)
    return (time.perf_counter() - began) / len(order)


def report(starts: list[dict], reads: dict[str, dict[str, float]]) -> int:
    """Print the figures and, last, the ratios; return the number of missed goals."""
    header = ["manifest", "entries", "first start, s (CPU)", "later start, s (CPU)", "earlier, CPU s", "us per entry"]
    rows = [
        [
            one["name"], f"{one['entries']:,}", *("{:.1f} ({:.1f})".format(*one[key]) for key in ("first", "later")),
            f"{one['earlier']:.1f}", f"{1e6 * one['per_entry']:.0f}",
        ]
        for one in starts
    ]  # fmt: skip
    print(markdown_table(header, rows), end="\n\n")
    header = ["features", "us per id", "per codes", "per features", "features per second"]
    rows = [[name, *(f"{us:.0f}" for us in found.values())] for name, found in reads.items()]
    rows = [[*row, f"{1e6 / found['features']:,.0f}"] for row, found in zip(rows, reads.values(), strict=True)]
    print(markdown_table(header, rows), end="\n\n")
    for one in starts:
        words = f"later start {one['later'][0]:.1f} s (goal: at most {GOAL:.0f} s)"
        print(f"{one['name']}: {words}, earlier / later {one['earlier'] / one['later'][1]:.1f}x (goal: more than 1)")
    own, other = (us["features"] for us in reads.values())
    print(f"features: by row groups / by position {other / own:.1f}x (no goal)")
    return sum(one["later"][0] > GOAL or one["later"][1] > one["earlier"] for one in starts)


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer entries, and smaller features")
    plan = IndexBenchSizes(20_000, 2000, 150) if parser.parse_args().quick else IndexBenchSizes(100_000, 20_000, 500)
    torch.set_num_threads(1)
    model = build(torch.device("cpu"), small=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.llm.tokenizer = fast_tokenizer([text(i, 40) for i in range(2000)], folder)
        texts = write_texts(folder / "texts.jsonl", plan.entries)
        stored = write_codes(folder / "stored.parquet", model, plan.entries, frames=(10, 4), width=8)
        starts = [
            measure_start("texts (.jsonl)", model, texts, ["T1T2"], folder / "a", plan),
            measure_start("codes and features (Parquet)", model, stored, ["A1T1", "A1T2", "T1A2"], folder / "b", plan),
        ]
        large = write_codes(folder / "large.parquet", model, 4 * GROUP, frames=(120, plan.frames), width=768)
        pq.write_table(pq.read_table(large), folder / "other.parquet", row_group_size=GROUP)
        reads = {
            "where omnikit tokenize puts them": measure_reads(large, folder / "c", 4 * GROUP),
            f"in row groups of {GROUP} entries": measure_reads(folder / "other.parquet", folder / "c", 8),
        }
    return int(report(starts, reads) > 0)


if __name__ == "__main__":
    with bad_input_exits():
        status = main()
    sys.exit(status)
