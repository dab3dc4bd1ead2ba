"""Decode steps of the engines of torch on a GPU at true size, in bfloat16 with random weights.

    python benchmarks/gpu.py                           # Whisper-small, Qwen2-0.5B, SNAC at 24 kHz; at most 4 minutes
    python benchmarks/gpu.py --quick                   # fewer steps and sizes, nothing compiled
    python benchmarks/gpu.py --quick --device cpu      # the mini system, for trying this script

A step is all that is done for one position: embedding the last tokens, blocks, heads, and the greedy choice of the next
tokens; `static` and `compiled` replay it as one CUDA graph. Everything is measured in one process, one engine after the
other. The floor is the time in which the weights that a step reads, and its keys and values, can be read from memory.
The exit status is 1 where a goal is missed, or where replaying a step does not give what running it gives.
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
from omnikit.engines import COMPILED, STATIC, TORCH, open_engine  # noqa: E402
from omnikit.cuda_graphs import UNRECORDED  # noqa: E402
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
"""After so many, what is left is not measured."""
COMPILING = 60.0
"""Seconds that compiling a step may take; nothing is compiled when fewer are left."""
PREFILL = 4096
"""Positions of a prompt that are computed at a time."""
GOALS = {(1, 200): 1.5, (64, 200): 2.6}
"""Streams and context -> milliseconds that a step may take, by the better one of `static` and `compiled`."""
FIRST_SOUND_GOAL = 45.0
"""Milliseconds from the question to the first sound."""
SAME = 0.02
"""Largest difference of hidden states of a replayed and a run step, relative to the largest of them: bfloat16 has eight
bits, and products of other shapes add in another order."""


@dataclass(frozen=True)
class GpuBenchSizes:
    """Numbers of streams, contexts, steps and repeats that are measured."""

    sizes: tuple[tuple[str, int, int], ...]  # engine, streams, context
    steps: int  # that are timed together; all of them around a context of 1000 fit into a cache of 1024 positions
    repeats: int
    answers: int  # until the first sound
    gib: float  # that are read to learn how fast memory is


WHOLE = GpuBenchSizes(
    sizes=(
        *((engine, streams, context) for engine in (TORCH, STATIC) for context in (200, 1000)
          for streams in (1, 2, 16, 64)),
        (COMPILED, 1, 200), (COMPILED, 64, 200),
    ),
    steps=12, repeats=3, answers=7, gib=2.0,
)  # fmt: skip
QUICK = GpuBenchSizes(
    sizes=tuple((engine, streams, 200) for engine in (TORCH, STATIC) for streams in (1, 16)),
    steps=8, repeats=2, answers=3, gib=0.2,
)  # fmt: skip


class Greedy:
    """Embeds the last tokens and chooses the next ones, in tensors that stay at their places."""

    def __init__(self, engine: Engine, model: OmniLM, capacity: int):
        self.engine, self.model = engine, model
        self.tokens = torch.zeros(capacity, model.layout.num_streams, dtype=torch.long, device=model.device)
        self.hidden = torch.zeros(capacity, model.llm.dim, dtype=model.dtype, device=model.device)
        self.sizes = model.layout.sizes[1:]

    def embed(self, rows: int) -> Tensor:
        """Return the embeddings of the last tokens [rows, D]."""
        return self.model.embed(self.tokens[:rows, :, None])[:, 0]

    def choose(self, hidden: Hidden) -> None:
        """Write the best token of each stream."""
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
    """Build the system at true size for a GPU, or load the mini system elsewhere; in bfloat16."""
    if device.type != "cuda":
        return checkpoint.load(dtype=torch.bfloat16).to(device)
    torch.manual_seed(0)
    with for_inference():
        model = omnikit.build(**PARTS)
    return model.to_dtype(torch.bfloat16).to(device).eval()


def filled(engine: Engine, model: OmniLM, streams: int, length: int) -> Slots:
    """Return slots that are filled with sequences of the same length."""
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
    """Time decode steps around a position; return the mean seconds of a step for each repeat."""
    unrecorded = UNRECORDED + 2
    first = context - (unrecorded + plan.steps * plan.repeats) // 2
    slots, greedy = filled(engine, model, streams, first), Greedy(engine, model, streams)

    def steps(count: int) -> None:
        for _ in range(count):
            slots.step(greedy.embed, greedy.choose)

    steps(unrecorded)
    return [seconds / plan.steps for seconds in bench.timed(lambda: steps(plan.steps), plan.repeats, model.device)]


def replay_error(engine: Engine, model: OmniLM, streams: int) -> float:
    """Largest difference of the hidden states of steps that are replayed and the same steps run one kernel after the
    other, relative to the largest of them."""
    worst, draw = 0.0, torch.Generator().manual_seed(1)
    slots = [filled(engine, model, streams, 100) for _ in range(2)]
    ways = [Greedy(engine, model, streams) for _ in range(2)]
    for _ in range(UNRECORDED + 5):
        fed = torch.stack([torch.randint(0, size, (streams,), generator=draw) for size in model.layout.sizes], dim=1)
        for greedy in ways:
            greedy.tokens.copy_(fed)
        slots[0].step(ways[0].embed, ways[0].choose)
        Slots.step(slots[1], ways[1].embed, ways[1].choose)  # as an engine does that records nothing
        ours, theirs = (greedy.hidden.float() for greedy in ways)
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    return worst


def first_sound_seconds(engine: Engine, model: OmniLM, plan: GpuBenchSizes) -> list[float]:
    """Return the seconds from asking a question of three seconds to its first sound."""
    lasting = model.pattern.num_steps(4)
    omni = Omni(model, engine=engine, decoding=Decoding(min_steps=lasting, max_steps=lasting))
    wav = bench.noise(model, bench.BenchSizes())

    def ask() -> Tensor:
        return next(chunk.wav for chunk in omni.stream(wav, mode=LOW_LATENCY) if len(chunk.wav))

    bench.timed(ask, UNRECORDED + 1, model.device)  # records the steps
    return bench.timed(ask, plan.answers, model.device)


def floor_seconds(model: OmniLM, streams: int, context: int, bytes_per_second: float) -> float:
    """Return the seconds in which the memory can deliver all that a decode step reads."""
    config = model.llm.config
    blocks = len(model.llm.trunk.layers) + (0 if model.tts_adapter is None else len(model.tts_adapter.trunk.layers))
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = bench.weights_per_step(model) + streams * context * blocks * 2 * config.num_key_value_heads * width
    return numbers * model.dtype.itemsize / bytes_per_second


def measured(model: OmniLM, plan: GpuBenchSizes, began: float) -> Iterator[dict]:
    """Yield each figure as soon as it has been measured."""
    gb_per_s = bench.memory_figures(1, [1.0], bench.BenchSizes(gib=plan.gib), model.device)["gb_per_s"][0]
    yield {"name": "memory", "gb_per_s": gb_per_s}
    engines = {name: open_engine(name, model) for name in (TORCH, STATIC)}
    for streams in (1, 4):
        yield {"name": "replay", "streams": streams, "error": replay_error(engines[STATIC], model, streams)}
    for name, engine in engines.items():
        taken = first_sound_seconds(engine, model, plan)
        yield {"name": "first sound", "engine": name, "ms": [1e3 * seconds for seconds in taken]}
    for name, streams, context in plan.sizes:
        if time.perf_counter() - began > SECONDS - (COMPILING if name == COMPILED else 5.0):
            yield {"name": "left out", "engine": name, "streams": streams, "context": context}
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
    """Print the tables."""
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
        if one["name"] == "memory":
            print(f"memory is read at {one['gb_per_s']:.0f} GB/s")
        if one["name"] == "left out":
            print(f"no time was left for {one['engine']}, {one['streams']} streams, context {one['context']}")


def missed_goals(figures: list[dict]) -> int:
    """Print each goal for a GPU beside what was measured, and return the number of missed goals."""
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
    parser.add_argument("--quick", action="store_true", help="fewer steps and sizes, nothing compiled")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try this script")
    parser.add_argument("--json", help="also write what was measured to this file")
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
    failed = any(one["name"] == "replay" and not one["error"] < SAME for one in figures)
    return int(failed or (device.type == "cuda" and missed_goals(figures) > 0))


if __name__ == "__main__":
    with bad_input_exits():
        status = main()
    sys.exit(status)
