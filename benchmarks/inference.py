"""Speed and memory of answering at true size, with random weights: omnikit's engines against the published method.

    python benchmarks/inference.py            # medians of 7 and more
    python benchmarks/inference.py --quick    # of 3; within a minute once the graphs are made

Everything is measured in one run on this machine, each side in a process of its own; the ratios come last, and the exit
status is 1 where one of them falls short of its goal. The first run makes a checkpoint and the engine's graphs in
`--cache_folder` (2 GB, minutes).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("baseline", "torch", "openvino")
BANDWIDTH = "bandwidth"
QUESTION_SECONDS = 3.0
CONTEXT = range(190, 211)
"""Positions at which a step is timed."""
ANSWER_STEPS = 64
GOALS = (
    # what, its figure, how it compares, goal
    ("step of openvino, one row", "step", "openvino", 4.0),
    ("step of openvino, two rows", "step_batch_parallel", "openvino", 4.0),
    ("step of torch", "step", "torch", 1.5),
    ("first sound of openvino", "first_sound", "openvino", 7.0),
    ("peak memory of openvino", "peak_gib", "openvino", 2.0),
)
"""Baseline's figure divided by ours has to be at least so much."""
MOST_REAL_TIME_FACTOR = 0.6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--cache_folder", default=str(Path.home() / ".cache" / "omnikit" / "benchmark"))
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--side", choices=(*SIDES, BANDWIDTH), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)))
        return 0
    checkpoint = Path(options.cache_folder) / "true-size"
    if not checkpoint.is_dir():
        print(f"making a checkpoint with random weights: {checkpoint}", flush=True)
        run_alone("import sys; from benchmarks.inference import make; make(sys.argv[1])", str(checkpoint))
    figures, bandwidth = {}, side_figures(BANDWIDTH, options)["gb_per_s"]
    for side in options.sides:
        print(f"measuring: {side}", flush=True)
        figures[side] = side_figures(side, options)
    if options.json:
        Path(options.json).write_text(json.dumps({BANDWIDTH: bandwidth, **figures}, indent=1) + "\n")
    print(table(figures))
    print(floors(figures, bandwidth))
    return report_goals(figures)


def run_alone(code: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, check=True)


def make(folder: str) -> None:
    """A checkpoint of the released architecture, its weights drawn."""
    import torch

    import omnikit
    from omnikit import checkpoint

    torch.manual_seed(0)
    parts = {"encoder": "whisper_small", "adapter": "gated_mlp", "llm": "qwen2_0.5b", "codec": "snac_24khz"}
    model = omnikit.build(**parts, **{"llm.tokenizer": "bytes", "encoder.pad_to_30s": False})
    checkpoint.save(model, folder)


def side_figures(side: str, options: argparse.Namespace) -> dict[str, float]:
    """What a process of its own measures."""
    command = [sys.executable, __file__, "--side", side, "--threads", str(options.threads)]
    command += ["--cache_folder", options.cache_folder, *(["--quick"] if options.quick else [])]
    # huge pages for what is allocated: fewer misses of the address translation
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(ROOT)}
    if side != "baseline":
        environment |= {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    environment |= {"XDG_CACHE_HOME": options.cache_folder}
    done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One side's figures: seconds, GiB, GB/s."""
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    repeats = 3 if options.quick else 7
    if options.side == BANDWIDTH:
        return {"gb_per_s": read_bandwidth()}
    side = (Published if options.side == "baseline" else Omnikit)(options)
    wav = torch.randn(int(QUESTION_SECONDS * side.model.encoder.sample_rate)) * 0.1
    figures = {
        "encode": timed(lambda: side.hear(wav), repeats),
        **side.steps(side.hear(wav), repeats),
        "codec_4_frames": timed(side.codec_pusher(), repeats),
        "first_sound": timed(lambda: next(side.sounds(wav)), repeats),
        **side.whole_answer(wav, max(1, repeats // 3)),
        "step_gb": side.step_bytes() / 1e9,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    return {name: round(value, 5) for name, value in figures.items()}


def read_bandwidth() -> float:
    """GB/s at which 2 GiB are read."""
    import torch

    data = torch.ones(2**29)
    seconds = timed(data.sum, 5)
    return data.numel() * 4 / seconds / 1e9


def timed(call: Callable[[], Any], repeats: int) -> float:
    """The median of some calls, after one that does not count."""
    call()
    return median(seconds_of(call) for _ in range(repeats))


def seconds_of(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def times_between(items: Iterator[Any]) -> list[float]:
    """Seconds that each item took."""
    taken, last = [], time.perf_counter()
    for _ in items:
        now = time.perf_counter()
        taken.append(now - last)
        last = now
    return taken


class FromTheFirst:
    """Items, and when the first of them had come."""

    def __init__(self, items: Iterator[Any]):
        self.items, self.began = items, 0.0

    def __iter__(self) -> Iterator[Any]:
        for number, item in enumerate(self.items):
            if not number:
                self.began = time.perf_counter()
            yield item


def weights_per_step(model: Any) -> int:
    """Weights that a step reads: those of the blocks and of the heads."""
    modules = (model.llm.trunk.layers, model.llm.lm_head, model.text_rows.head, model.audio_rows.head)
    return sum(p.numel() for module in modules for p in module.parameters())


class Published:
    """The baseline's side."""

    def __init__(self, options: argparse.Namespace):
        from benchmarks.baseline import CHUNK, Baseline
        from omnikit import checkpoint

        self.model = checkpoint.load(Path(options.cache_folder) / "true-size")
        self.model.encoder.pad_to_30s = True
        self.baseline, self.chunk = Baseline(self.model), CHUNK

    def step_bytes(self) -> int:
        return 4 * (weights_per_step(self.model) + self.baseline.cache.numel())

    def hear(self, wav: Any) -> Any:
        return self.baseline.hear(wav)

    def steps(self, features: Any, repeats: int) -> dict[str, float]:
        prompt = len(features) + 4
        taken = [times_between(self.baseline.steps(features, CONTEXT.stop - prompt)) for _ in range(1 + repeats // 3)]
        step = median(times[at - prompt] for times in taken[1:] for at in CONTEXT)
        # both rows are always computed
        return {"prefill": median(times[0] for times in taken[1:]), "step": step, "step_batch_parallel": step}

    def codec_pusher(self) -> Callable[[], Any]:
        import torch

        codes = torch.randint(0, self.model.codec.codebook_size, (1, self.model.codec.num_codebooks, self.chunk))
        return lambda: self.baseline.decode(codes)

    def sounds(self, wav: Any) -> Iterator[Any]:
        return self.baseline.sounds(self.baseline.steps(self.baseline.hear(wav), ANSWER_STEPS))

    def whole_answer(self, wav: Any, repeats: int) -> dict[str, float]:
        factors, features = [], self.hear(wav)
        for _ in range(repeats):
            steps = FromTheFirst(self.baseline.steps(features, ANSWER_STEPS))
            samples = sum(len(piece) for piece in self.baseline.sounds(steps))
            factors.append((time.perf_counter() - steps.began) * self.model.codec.sample_rate / samples)
        return {"real_time_factor": median(factors)}


class Omnikit:
    """One of omnikit's engines."""

    def __init__(self, options: argparse.Namespace):
        import omnikit
        from omnikit.generate import Decoding

        folder = Path(options.cache_folder) / "true-size"
        dtype = {"dtype": "bfloat16"} if options.side == "torch" else {}
        self.omni = omnikit.load(folder, engine=options.side, **dtype)
        self.omni.decoding = Decoding(max_steps=ANSWER_STEPS)
        self.model = self.omni.model
        self.weight_bytes = {"torch": 2, "openvino": 1}[options.side]

    def step_bytes(self) -> int:
        return self.weight_bytes * weights_per_step(self.model)

    def hear(self, wav: Any) -> Any:
        return self.omni.hear(wav)

    def steps(self, question: Any, repeats: int) -> dict[str, float]:
        from omnikit.generate import Decoding, generate
        from omnikit.strategies import BATCH_PARALLEL, PARALLEL
        from omnikit.tasks import TASKS

        prompt = len(question.features) + 4
        found = {}
        for name, strategy in (("step", PARALLEL), ("step_batch_parallel", BATCH_PARALLEL)):
            options = {"decoding": Decoding(max_steps=CONTEXT.stop - prompt), "strategy": strategy}
            options["engine"] = self.omni.engine
            taken = [
                times_between(generate(self.model, TASKS["A1A2"], [question], **options))
                for _ in range(1 + repeats // 3)
            ]
            found[name] = median(times[at - prompt] for times in taken[1:] for at in CONTEXT)
            found.setdefault("prefill", median(times[0] for times in taken[1:]))
        return found

    def codec_pusher(self) -> Callable[[], Any]:
        import torch

        codec = self.model.codec
        codes = torch.randint(0, codec.codebook_size, (1, codec.num_codebooks, 4))
        stream = codec.stream()
        return lambda: stream.push(codes)

    def sounds(self, wav: Any) -> Iterator[Any]:
        return (chunk.wav for chunk in self.omni.stream(wav, mode="low_latency") if chunk.wav.numel())

    def whole_answer(self, wav: Any, repeats: int) -> dict[str, float]:
        factors = []
        for _ in range(repeats):
            chunks = FromTheFirst(self.omni.stream(wav))
            samples = sum(len(chunk.wav) for chunk in chunks)
            factors.append((time.perf_counter() - chunks.began) * self.model.codec.sample_rate / samples)
        return {"real_time_factor": median(factors)}


WORDS = {
    "encode": ("encode 3 s", 1e3, "ms"),
    "prefill": ("prefill", 1e3, "ms"),
    "step": ("step, context 200", 1e3, "ms"),
    "step_batch_parallel": ("step, batch-parallel", 1e3, "ms"),
    "codec_4_frames": ("codec, 4 frames", 1e3, "ms"),
    "first_sound": ("first sound", 1e3, "ms"),
    "real_time_factor": ("real-time factor (steps and codec)", 1.0, ""),
    "peak_gib": ("peak memory", 1.0, "GiB"),
    "step_gb": ("read per step", 1.0, "GB"),
}


def table(figures: dict[str, dict[str, float]]) -> str:
    """Markdown, a column for each side."""
    sys.path.insert(0, str(ROOT))
    from omnikit.evaluate.tables import markdown_table

    rows = [
        [f"{words}, {unit}" if unit else words, *(f"{figures[side][name] * factor:.4g}" for side in figures)]
        for name, (words, factor, unit) in WORDS.items()
    ]
    return markdown_table(["", *figures], rows)


def floors(figures: dict[str, dict[str, float]], bandwidth: float) -> str:
    """What a step takes of what reading its memory alone would take."""
    shares = (f"{side} {100 * each['step_gb'] / bandwidth / each['step']:.0f} %" for side, each in figures.items())
    return f"memory is read at {bandwidth:.1f} GB/s; a step's speed is, of what that allows: {', '.join(shares)}"


def report_goals(figures: dict[str, dict[str, float]]) -> int:
    """Prints the ratios; 1 where a goal is missed."""
    missed = 0
    for words, name, side, goal in GOALS:
        if side in figures and "baseline" in figures:
            ratio = figures["baseline"][name] / figures[side][name]
            missed += ratio < goal
            verdict = "" if ratio >= goal else ", missed"
            print(f"{words}: {ratio:.2f} x better than the baseline (goal {goal:g}{verdict})")
    if "openvino" in figures:
        factor = figures["openvino"]["real_time_factor"]
        missed += factor > MOST_REAL_TIME_FACTOR
        print(f"real-time factor of openvino: {factor:.2f} (goal {MOST_REAL_TIME_FACTOR:g} at most)")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
