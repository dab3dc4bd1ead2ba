"""Decode steps of the torch-based engines on a GPU at true size, in bfloat16 with random weights.

    python benchmarks/gpu.py                           # Whisper-small, Qwen2-0.5B, SNAC at 24 kHz; at most 4 minutes
    python benchmarks/gpu.py --quick                   # fewer steps and sizes, nothing compiled
    python benchmarks/gpu.py --quick --device cpu      # the mini system, to test this script

A decode step includes embedding the last tokens, blocks, heads, and the greedy choice of the next tokens; `static` and
`compiled` replay it as one CUDA graph. All engines are measured in one process, one after the other. The floor is the
time in which the memory can deliver the weights, keys and values that a step reads. The exit status is 1 if a goal is
missed, or if a replayed step or codec differs from the same computation without replay.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import omnikit  # noqa: E402
from benchmarks.inference import PARTS  # noqa: E402
from omnikit import checkpoint  # noqa: E402
from omnikit.api import Omni  # noqa: E402
from omnikit.bench import measure as bench  # noqa: E402
from omnikit.cuda_graphs import UNRECORDED  # noqa: E402
from omnikit.engines import COMPILED, STATIC, TORCH, open_engine  # noqa: E402
from omnikit.errors import ArgumentParser, bad_input_exits  # noqa: E402
from omnikit.evaluate.result_tables import markdown_table  # noqa: E402
from omnikit.files import write_text  # noqa: E402
from omnikit.generate import Decoding  # noqa: E402
from omnikit.interfaces import Engine, Hidden, Slots  # noqa: E402
from omnikit.llms.build_modes import for_inference  # noqa: E402
from omnikit.model import OmniLM  # noqa: E402
from omnikit.streaming import LOW_LATENCY  # noqa: E402
from omnikit.torchrun import check_device  # noqa: E402

SECONDS = 240.0
"""Seconds since the script's start after which no further measurement is begun."""
COMPILING = 60.0
"""Maximum number of seconds for compiling a decode step; if fewer are left, nothing is compiled."""
PREFILL = 4096
"""Number of prompt positions that are computed in one call of a prefill."""
GOALS = {(1, 200): 1.5, (64, 200): 2.6}
"""Mapping from (streams, context) to the maximum decode-step time in ms, by the faster of `static` and `compiled`."""
FIRST_SOUND_GOAL = 45.0
"""Maximum first-sound latency in milliseconds."""
SAME = 0.02
"""Maximum difference between hidden states computed with and without CUDA graphs, relative to the largest one.

bfloat16 has eight bits, and products of other shapes add in another order.
"""


@dataclass(frozen=True)
class GpuBenchSizes:
    """Sizes of the decode steps that the GPU benchmark measures, and how often each measurement is repeated."""

    sizes: tuple[tuple[str, int, int], ...]  # (engine, streams, context) of each measurement
    steps: int  # number of steps timed together; all repeats at context 1000 fit into a cache of 1024 positions
    repeats: int  # number of timings
    answers: int  # number of answers whose first-sound latency is timed
    gib: float  # GiB of memory that are read to measure its bandwidth


WHOLE = GpuBenchSizes(
    sizes=(
        *((engine, streams, context) for engine in (TORCH, STATIC) for context in (200, 1000)
          for streams in (1, 2, 16, 64)),
        (COMPILED, 1, 200), (COMPILED, 64, 200),
    ),
    steps=12, repeats=3, answers=7, gib=2.0,
)  # fmt: skip
"""Sizes and numbers of repeats of a complete run of the GPU benchmark."""
QUICK = GpuBenchSizes(
    sizes=tuple((engine, streams, 200) for engine in (TORCH, STATIC) for streams in (1, 16)),
    steps=8, repeats=2, answers=3, gib=0.2,
)  # fmt: skip
"""Sizes and numbers of repeats of the GPU benchmark with `--quick`."""


class Greedy:
    """The functions `embed` and `choose` of a greedy decode step, over preallocated tensors, see `Slots.step`."""

    def __init__(self, engine: Engine, model: OmniLM, capacity: int):
        self.engine, self.model = engine, model
        self.tokens = torch.zeros(capacity, model.layout.num_streams, dtype=torch.long, device=model.device)
        self.hidden = torch.zeros(capacity, model.llm.dim, dtype=model.dtype, device=model.device)
        self.sizes = model.layout.sizes[1:]

    def embed(self, rows: int) -> Tensor:
        """Return the embeddings of the last tokens [rows, D]."""
        return self.model.embed(self.tokens[:rows, :, None])[:, 0]

    def choose(self, hidden: Hidden) -> None:
        """Write the most likely token of each stream to `tokens`."""
        rows = len(hidden.text)
        self.tokens[:rows, 0] = self.engine.text_logits(hidden.text).argmax(dim=-1)
        logits = self.engine.audio_logits(hidden.audio)
        if len(set(self.sizes)) == 1:
            self.tokens[:rows, 1:] = logits.unflatten(1, (len(self.sizes), -1)).argmax(dim=-1)
        else:
            for stream, one in enumerate(logits.split(self.sizes, dim=-1), start=1):
                self.tokens[:rows, stream] = one.argmax(dim=-1)
        self.hidden[:rows] = hidden.audio


def build(device: torch.device) -> OmniLM:
    """Build the system at true size on a GPU, or load the mini system on another device; both in bfloat16."""
    if device.type != "cuda":
        return checkpoint.load(dtype=torch.bfloat16).to(device)
    torch.manual_seed(0)
    with for_inference():
        model = omnikit.build(**PARTS)
    return model.to_dtype(torch.bfloat16).to(device).eval()


def filled(engine: Engine, model: OmniLM, streams: int, length: int) -> Slots:
    """Return slots that hold `streams` sequences with `length` random positions each."""
    slots, draw = engine.open(streams), torch.Generator().manual_seed(length)
    steps = torch.stack([torch.randint(0, size, (1, length), generator=draw) for size in model.layout.sizes], dim=1)
    prefill = slots.prefill([model.embed(steps.to(model.device))[0]])
    while prefill.left:
        prefill.advance(PREFILL)
    slots.admit(prefill)
    for _ in range(1, streams):
        slots.copy(0)
    return slots


def step_seconds(engine: Engine, model: OmniLM, streams: int, context: int, plan: GpuBenchSizes) -> list[float]:
    """Return the mean seconds of a decode step around position `context`, one value per repeat."""
    unrecorded = UNRECORDED + 2
    first = context - (unrecorded + plan.steps * plan.repeats) // 2
    slots, greedy = filled(engine, model, streams, first), Greedy(engine, model, streams)

    def steps(count: int) -> None:
        for _ in range(count):
            slots.step(greedy.embed, greedy.choose)

    steps(unrecorded)
    return [seconds / plan.steps for seconds in bench.timed(lambda: steps(plan.steps), plan.repeats, model.device)]


def replay_error(engine: Engine, model: OmniLM, streams: int) -> float:
    """Return the largest difference between hidden states of decode steps with and without CUDA graphs.

    The difference is relative to the largest hidden state of the step.
    """
    worst, draw = 0.0, torch.Generator().manual_seed(1)
    slots = [filled(engine, model, streams, 100) for _ in range(2)]
    ways = [Greedy(engine, model, streams) for _ in range(2)]
    for _ in range(UNRECORDED + 5):
        fed = torch.stack([torch.randint(0, size, (streams,), generator=draw) for size in model.layout.sizes], dim=1)
        for greedy in ways:
            greedy.tokens.copy_(fed)
        slots[0].step(ways[0].embed, ways[0].choose)
        Slots.step(slots[1], ways[1].embed, ways[1].choose)  # the base class records nothing
        ours, theirs = (greedy.hidden.float() for greedy in ways)
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    return worst


def sound_error(model: OmniLM) -> float:
    """Return the largest difference between a codec's samples decoded with and without CUDA graphs.

    Both decode the same random frames. The difference is relative to the largest sample.
    """
    codec, draw = model.codec, torch.Generator().manual_seed(2)
    streams, worst = codec.streams(LOW_LATENCY), 0.0
    for _ in range(UNRECORDED + 2):
        number, alone = streams.open(), codec.stream(mode=LOW_LATENCY)
        for _ in range(8):
            frame = torch.randint(codec.codebook_size, (codec.num_codebooks, 1), generator=draw).to(model.device)
            ours, theirs = streams.push({number: frame})[number], alone.push(frame[None])[0]
            worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-9)))
        streams.drop(number)
    return worst


def first_sound_seconds(engine: Engine, model: OmniLM, plan: GpuBenchSizes) -> list[float]:
    """Return the first-sound latency in seconds of each of several answers to a question of three seconds."""
    lasting = model.pattern.num_steps(4)
    omni = Omni(model, engine=engine, decoding=Decoding(min_steps=lasting, max_steps=lasting))
    wav = bench.noise(model, bench.BenchSizes())

    def ask() -> Tensor:
        return next(chunk.wav for chunk in omni.stream(wav, mode=LOW_LATENCY) if len(chunk.wav))

    bench.timed(ask, UNRECORDED + 1, model.device)  # records the steps
    return bench.timed(ask, plan.answers, model.device)


def floor_seconds(model: OmniLM, streams: int, context: int, bytes_per_second: float) -> float:
    """Return the memory-bandwidth lower bound, in seconds, of one decode step.

    This is the time in which the memory can deliver all weights, keys and values that the step reads.
    """
    config = model.llm.config
    blocks = len(model.llm.trunk.layers) + (0 if model.tts_adapter is None else len(model.tts_adapter.trunk.layers))
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = bench.weights_per_step(model) + streams * context * blocks * 2 * config.num_key_value_heads * width
    return numbers * model.dtype.itemsize / bytes_per_second


def measured(model: OmniLM, plan: GpuBenchSizes, began: float) -> Iterator[dict]:
    """Yield each measurement once it is done, as a dictionary with its name, sizes and values.

    Args:
        began: `time.perf_counter()` at the start of the script, for its time limit.
    """
    gb_per_s = bench.memory_figures(1, [1.0], bench.BenchSizes(gib=plan.gib), model.device)["gb_per_s"][0]
    yield {"name": "memory", "gb_per_s": gb_per_s}
    engines = {name: open_engine(name, model) for name in (TORCH, STATIC)}
    for streams in (1, 4):
        yield {"name": "replay", "streams": streams, "error": replay_error(engines[STATIC], model, streams)}
    yield {"name": "sound", "error": sound_error(model)}
    for name, engine in engines.items():
        taken = first_sound_seconds(engine, model, plan)
        yield {"name": "first sound", "engine": name, "ms": [1e3 * seconds for seconds in taken]}
    for name, streams, context in plan.sizes:
        if time.perf_counter() - began > SECONDS - (COMPILING if name == COMPILED else 5.0):
            yield {"name": "skipped", "engine": name, "streams": streams, "context": context}
            continue
        if name not in engines:
            engines[name] = open_engine(name, model)
        taken = step_seconds(engines[name], model, streams, context, plan)
        floor = floor_seconds(model, streams, context, gb_per_s * 1e9)
        yield {
            "name": "step", "engine": name, "streams": streams, "context": context,
            "ms": [1e3 * seconds for seconds in taken], "percent_of_floor": 100 * floor / median(taken),
        }  # fmt: skip


def report(figures: list[dict]) -> None:
    """Print the measurements of the GPU benchmark: decode-step times as a table, the others as lines."""
    steps = [one for one in figures if one["name"] == "step"]
    by = {(one["engine"], one["streams"], one["context"]): one for one in steps}
    names, sizes = list(dict.fromkeys(key[0] for key in by)), sorted({key[1:] for key in by}, key=lambda s: s[::-1])

    def cell(name: str, streams: int, context: int) -> str:
        one = by.get((name, streams, context))
        return "" if one is None else f"{median(one['ms']):.3g} ({one['percent_of_floor']:.0f} %)"

    rows = [[*map(str, size), *(cell(name, *size) for name in names)] for size in sizes]
    print("\nms per step (and how near that is to the floor)\n")
    print(markdown_table(["streams", "context", *names], rows))
    print()
    for one in figures:
        if one["name"] == "first sound":
            print(f"first sound, {one['engine']}: {median(one['ms']):.1f} ms")
        if one["name"] == "replay":
            print(f"replayed steps of {one['streams']} streams differ from run ones by {one['error']:.2g}")
        if one["name"] == "sound":
            print(f"sound of replayed streams differs from that of run ones by {one['error']:.2g}")
        if one["name"] == "memory":
            print(f"memory is read at {one['gb_per_s']:.0f} GB/s")
        if one["name"] == "skipped":
            print(f"skipped for lack of time: {one['engine']}, {one['streams']} streams, context {one['context']}")


def missed_goals(figures: list[dict]) -> int:
    """Print each limit for a GPU with the measured value, and return the number of violated limits."""
    missed = 0
    steps = [one for one in figures if one["name"] == "step" and one["engine"] != TORCH]
    for (streams, context), goal in GOALS.items():
        found = [median(one["ms"]) for one in steps if (one["streams"], one["context"]) == (streams, context)]
        missed += _judge(f"step of {streams} streams, context {context}", found, goal)
    found = [median(one["ms"]) for one in figures if one["name"] == "first sound" and one["engine"] == STATIC]
    return missed + _judge("first sound", found, FIRST_SOUND_GOAL)


def _judge(what: str, found: list[float], goal: float) -> bool:
    if not found:
        return False
    missed = min(found) > goal
    print(f"{what}: {min(found):.3g} ms (goal {goal:g} ms{', missed' if missed else ''})")
    return missed


def main() -> int:
    began = time.perf_counter()
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="measure fewer steps and sizes, compile nothing")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to test this script (default: cuda)")
    parser.add_argument("--json", help="also write the figures to this JSON file")
    options = parser.parse_args()
    check_device(options.device)
    device, plan, figures = torch.device(options.device), QUICK if options.quick else WHOLE, []
    if device.type == "cuda":
        print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}", flush=True)
    model = build(device)
    with torch.inference_mode():
        for one in measured(model, plan, began):
            figures.append(one)
            print(f"{time.perf_counter() - began:.0f} s: {one}", file=sys.stderr, flush=True)
    if options.json:
        write_text(options.json, json.dumps(figures, indent=1) + "\n")
    report(figures)
    failed = any("error" in one and not one["error"] < SAME for one in figures)
    return int(failed or (device.type == "cuda" and missed_goals(figures) > 0))


if __name__ == "__main__":
    with bad_input_exits():
        status = main()
    sys.exit(status)
