"""Time of a decode step of several sequences relative to that of one, at true size with random weights.

    python benchmarks/batch_sizes.py                      # openvino, int8; 1, 2, 4, 8 and 16 sequences at context 200
    python benchmarks/batch_sizes.py --engine torch --rows 1 4

A decode step includes embedding, blocks, heads, and the choice of tokens. Steps of the different numbers of sequences
alternate, so that changes in the machine's speed affect all of them. Printed are medians and their ratios; the exit
status is 1 if four sequences take more than 1.7 times as long as one.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import omnikit  # noqa: E402
from benchmarks.inference import CACHE_FOLDER, true_size  # noqa: E402
from omnikit.api import Omni  # noqa: E402
from omnikit.engines import ENGINES, OPENVINO  # noqa: E402
from omnikit.errors import ArgumentParser, bad_input_exits  # noqa: E402
from omnikit.generate import Decoding, Question, RunningBatch  # noqa: E402
from omnikit.option_ranges import COUNT, THREADS  # noqa: E402
from omnikit.tasks import TASKS, prompt_length  # noqa: E402

CONTEXT = 200
"""Number of positions of each sequence in the KV cache before the timed decode steps."""
MOST = {4: 1.7}
"""Mapping from number of sequences to the maximum ratio of their decode-step time to that of one sequence."""


def batch_of(omni: Omni, rows: int) -> RunningBatch:
    """Return a running batch of `rows` prefilled answers that do not end."""
    length = (CONTEXT - prompt_length(0)) * omni.model.adapter.stride
    question = Question(features=torch.randn(length, omni.model.encoder.dim))
    decoding, batch = Decoding(min_steps=10_000, max_steps=10_000), omni.decoder.batch(rows)
    for _ in range(rows):
        batch.submit(omni.decoder.request(TASKS["A1A2"], question, decoding=decoding))
    for _ in range(3):
        batch.turn()
    return batch


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default=OPENVINO, choices=ENGINES, help="engine to measure (default: openvino)")
    sizes = "numbers of sequences, the first of which is the unit of the ratios (default: 1 2 4 8 16)"
    parser.add_argument("--rows", type=COUNT, nargs="+", default=[1, 2, 4, 8, 16], help=sizes)
    parser.add_argument("--rounds", type=COUNT, default=21, help="timed steps of each number (default: 21)")
    parser.add_argument("--threads", type=THREADS, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--cache_folder", default=CACHE_FOLDER, help="folder of the checkpoint and the graphs")
    options = parser.parse_args()
    folder = true_size(options.cache_folder)
    torch.set_num_threads(options.threads)
    omni = omnikit.load(folder, engine=options.engine)
    batches = {rows: batch_of(omni, rows) for rows in options.rows}
    taken: dict[int, list[float]] = {rows: [] for rows in batches}
    for _ in range(options.rounds):
        for rows, batch in batches.items():
            began = time.perf_counter()
            batch.turn()
            taken[rows].append(1000 * (time.perf_counter() - began))
    one, missed = median(taken[options.rows[0]]), 0
    for rows, times in taken.items():
        most = MOST.get(rows)
        ratio = median(times) / one
        missed += most is not None and ratio > most
        goal = "" if most is None else f" (goal {most:g} at most{', missed' if ratio > most else ''})"
        print(f"{rows:3} sequences: {median(times):6.1f} ms, {ratio:.2f} x{goal}")
    return int(missed > 0)


if __name__ == "__main__":
    with bad_input_exits():
        status = main()
    sys.exit(status)
