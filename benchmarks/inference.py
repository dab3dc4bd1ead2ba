"""Speed and memory of answering at true size with random weights: omnikit's engines against the published method.

    python benchmarks/inference.py            # medians of 7 or more measurements
    python benchmarks/inference.py --quick    # of 2; for the baseline one answer of four frames
    python benchmarks/inference.py --sides torch static compiled

Everything is measured in one run on this machine, each implementation in a process of its own. Ratios are printed last;
the exit status is 1 if one of them misses its goal. The first run writes a checkpoint and the engine's graphs to
`--cache_folder` (2 GB, minutes).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from omnikit.bench.table import Figures, table  # noqa: E402
from omnikit.errors import ArgumentParser, bad_input_exits  # noqa: E402
from omnikit.files import write_text  # noqa: E402
from omnikit.option_ranges import THREADS  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.baseline import Baseline
    from omnikit.bench.measure import BenchSizes
    from omnikit.model import OmniLM

CACHE_FOLDER = str(Path.home() / ".cache" / "omnikit" / "benchmark")
"""Default folder of the checkpoint at true size and the graphs of engines."""
PARTS = {
    "encoder": "whisper_small", "adapter": "gated_mlp", "llm": "qwen2_0.5b", "codec": "snac_24khz",
    "llm.tokenizer": "bytes", "encoder.pad_to_30s": False,
}  # fmt: skip
"""Parts and options of the released architecture."""
USUAL = ("baseline", "torch", "openvino")
"""Names of the implementations (the baseline and engines) that are measured by default."""
SIDES = (*USUAL, "static", "compiled")
"""Names of all measured implementations: the baseline and omnikit's engines; `compiled` takes a minute to compile."""
GOALS = (
    # label, figure, engine, minimum ratio
    ("step of openvino, one row", "step", "openvino", 4.0),
    ("step of openvino, two rows", "step_batch_parallel", "openvino", 4.0),
    ("step of torch", "step", "torch", 1.5),
    ("first sound of openvino", "first_sound", "openvino", 7.0),
    ("peak memory of openvino", "peak_gib", "openvino", 2.0),
)
"""Minimum ratio of the baseline's measurement to an engine's, for each quantity that is compared."""
MOST_REAL_TIME_FACTOR = 0.6
"""Maximum real-time factor of the engine `openvino`."""


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats and shorter answers")
    parser.add_argument("--threads", type=THREADS, default=2, help="CPU threads (default: 2)")
    sides = f"the baseline and engines to measure (default: {' '.join(USUAL)})"
    parser.add_argument("--sides", nargs="+", default=list(USUAL), choices=SIDES, help=sides)
    parser.add_argument("--cache_folder", default=CACHE_FOLDER, help="folder of the checkpoint and the graphs")
    parser.add_argument("--json", help="also write the figures to this JSON file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)), flush=True)
        os._exit(0)  # a regular exit takes another second to free gigabytes
    true_size(options.cache_folder)
    figures = {}
    for side in options.sides:
        print(f"measuring: {side}", flush=True)
        figures[side] = side_figures(side, options)
    if options.json:
        write_text(options.json, json.dumps(figures, indent=1) + "\n")
    print(table(figures))
    return report_goals(figures)


def true_size(cache_folder: str) -> Path:
    """Return the checkpoint folder of the system at true size; if it is missing, a subprocess writes it first."""
    folder = Path(cache_folder) / "true-size"
    if not folder.is_dir():
        print(f"making a checkpoint with random weights: {folder}", flush=True)
        code = "import sys; from benchmarks.inference import make; make(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True)
    return folder


def make(folder: str) -> None:
    """Write a checkpoint of the released architecture with random weights to a folder."""
    import torch

    import omnikit
    from omnikit import checkpoint

    torch.manual_seed(0)
    checkpoint.save(omnikit.build(**PARTS), folder)


def side_figures(side: str, options: argparse.Namespace) -> Figures:
    """Return the measurements of one implementation (the baseline or an engine), taken in a subprocess."""
    command = [sys.executable, __file__, "--side", side, "--threads", str(options.threads)]
    command += ["--cache_folder", options.cache_folder, *(["--quick"] if options.quick else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    if side != "baseline":
        # huge pages for allocations: fewer misses in address translation
        environment |= {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    environment |= {"XDG_CACHE_HOME": options.cache_folder}
    done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> Figures:
    """Return the measurements of the implementation that `--side` names, taken in this process."""
    import torch

    import omnikit
    from benchmarks.baseline import CHUNK
    from omnikit import checkpoint
    from omnikit.bench import measure as bench
    from omnikit.engines import TORCH_ENGINES

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    plan, folder = bench.QUICK if options.quick else bench.BenchSizes(), true_size(options.cache_folder)
    if options.side == "baseline":
        if options.quick:  # all of its steps take the same time, so a short answer is enough
            plan = dataclasses.replace(plan, frames=CHUNK)
        return measure_baseline(checkpoint.load(folder), plan)
    dtype = {"dtype": "bfloat16"} if options.side in TORCH_ENGINES else {}
    return bench.measure(omnikit.load(folder, engine=options.side, **dtype), plan)


def measure_baseline(model: OmniLM, plan: BenchSizes) -> Figures:
    """Measure the speed and memory of the baseline.

    The baseline is slow, so all figures are taken from whole answers: its steps take the same time at every position,
    and both sequences are always computed.
    """
    import torch

    from benchmarks.baseline import Baseline
    from omnikit.bench import measure as bench

    model.encoder.pad_to_30s = True
    baseline, wav = Baseline(model), bench.noise(model, plan)
    bench.TimedIterator(baseline.steps(torch.zeros(1, model.encoder.dim), bench.UNTIMED_STEPS)).through()  # warms up
    answers = [time_answer(baseline, wav, plan) for _ in range(plan.answers)]
    figures = {name: [value for answer in answers for value in answer[name]] for name in answers[0]}
    step_bytes = model.dtype.itemsize * (bench.weights_per_step(model) + baseline.cache.numel())
    return {**figures, **bench.memory_figures(step_bytes, figures["step"], plan, model.device)}


def time_answer(baseline: Baseline, wav: Tensor, plan: BenchSizes) -> Figures:
    """Answer a question with the baseline, and return the measurements of each stage of the answer."""
    from omnikit.bench import measure as bench

    model, sounds, samples, began = baseline.model, [], 0, time.perf_counter()
    features = baseline.hear(wav)
    encoding = time.perf_counter() - began
    steps = bench.TimedIterator(baseline.steps(features, model.pattern.num_steps(plan.frames)))
    for chunk in baseline.sounds(steps):
        now = steps.until_now()
        sounds.append((now, now - steps.came[-1]))
        samples += len(chunk)
    return {
        "encode": [encoding],
        "prefill": steps.taken[:1],
        "step": steps.taken[1:],
        "step_batch_parallel": steps.taken[1:],
        "codec": [decoding for _, decoding in sounds],
        "first_sound": [encoding + sounds[0][0]],
        "real_time_factor": [bench.real_time_factor(steps, samples, model)],
    }


def report_goals(figures: dict[str, Figures]) -> int:
    """Print the ratios of the baseline's measurements to the engines'; return 1 if one is too low, else 0."""
    missed = 0
    for words, name, side, goal in GOALS:
        if side in figures and "baseline" in figures:
            ratio = median(figures["baseline"][name]) / median(figures[side][name])
            missed += ratio < goal
            verdict = "" if ratio >= goal else ", missed"
            print(f"{words}: {ratio:.2f} x better than the baseline (goal {goal:g}{verdict})")
    if "openvino" in figures:
        factor = median(figures["openvino"]["real_time_factor"])
        missed += factor > MOST_REAL_TIME_FACTOR
        print(f"real-time factor of openvino: {factor:.2f} (goal {MOST_REAL_TIME_FACTOR:g} at most)")
    return int(missed > 0)


if __name__ == "__main__":
    with bad_input_exits():
        status = main()
    sys.exit(status)
