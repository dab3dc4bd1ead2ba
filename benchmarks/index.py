"""Benchmark of reading a source at the first and at a later start of a training: CPU time for many written questions.

    python benchmarks/index.py            # 100,000 entries: a minute
    python benchmarks/index.py --quick    # 20,000

The source is a `.jsonl` file of synthetic questions and answers, and the tokenizer that of the shipped system. At the
first start the texts are tokenized and stored as an index; a later one maps it (`omnikit/data/source_index.py`). Each
start is a process of its own, whose time is counted from its imports on, with that of its child processes. The exit
status is 1 if a later start takes more than 5 s.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import resource
import string
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from omnikit import checkpoint  # noqa: E402
from omnikit.data.samples import make_dataset  # noqa: E402
from omnikit.data.sources import read_sources  # noqa: E402
from omnikit.errors import ArgumentParser, bad_input_exits  # noqa: E402

GOAL = 5.0
"""Maximum CPU seconds of a later start, for any number of entries up to 100,000."""
MINI = ROOT / "omnikit" / "pretrained" / "mini"


def write_manifest(path: Path, entries: int) -> None:
    """Write a manifest of questions and answers that are made of 2000 words, 10 and 30 words long on average."""
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(2000)]
    with path.open("w") as file:
        for number in range(entries):
            t1, t2 = (" ".join(rng.choices(words, k=rng.randint(1, most))) for most in (19, 59))
            file.write(json.dumps({"ID": f"entry-{number}", "t1": t1, "t2": t2}) + "\n")


def start(folder: Path, result: Connection) -> None:
    """Read the source and make its table of samples, and send the CPU seconds that this takes and the samples."""
    model = checkpoint.load(MINI)
    before = cpu_seconds()
    options = {"texts": {"manifest": str(folder / "texts.jsonl"), "tasks": ["T1T2"]}}
    sources = read_sources(options, model, tasks={"T1T2": 1.0}, cache_folder=folder / "cache")
    samples = make_dataset(model, sources, {"T1T2": 1.0})
    result.send((cpu_seconds() - before, len(samples)))


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its child processes that have ended."""
    used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a fifth of the entries")
    entries = 20_000 if parser.parse_args().quick else 100_000
    context, seconds = multiprocessing.get_context("spawn"), []
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(Path(folder) / "texts.jsonl", entries)
        for name in ("first", "second"):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=start, args=(Path(folder), sender))
            process.start()
            taken, samples = receiver.recv()
            process.join()
            assert samples == entries
            seconds.append(taken)
            print(f"{name} start: {taken:.2f} CPU-seconds for {entries:,} entries", flush=True)
        size = sum(path.stat().st_size for path in Path(folder).glob("cache/index/*/*.npy"))
    print(f"index: {size / entries:.0f} bytes per entry")
    print(f"second start: {seconds[1]:.2f} CPU-seconds (goal {GOAL:g} at most)")
    return int(seconds[1] > GOAL)


if __name__ == "__main__":
    with bad_input_exits():
        status = main()
    sys.exit(status)
