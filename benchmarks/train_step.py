"""Benchmark of training steps in stages 1 and 3: baseline, chunked logits, compiled, and the recipe's own loop.

    python benchmarks/train_step.py                          # true size on a GPU, bfloat16; at most 3 minutes
    python benchmarks/train_step.py --profile                # also list the kernels that take most of a step
    python benchmarks/train_step.py --quick --device cpu     # a small network and a small vocabulary; 50 s on two cores
    python benchmarks/train_step.py --device cpu             # heads and loss at true size, the network small; minutes

A step is a forward pass, a backward pass and an optimiser step (AdamW, fused) on a batch of random tokens that is
already on the device. Weights are random float32 values; on a GPU, products are bfloat16 by autocast. The bare loops do
nothing else; "recipe" is SpeechBrain's loop with the recipe's sampler, collate function and Brain, over entries in
memory. MFU is the number of operations per second (`omnikit.train.operations`) relative to the dense bfloat16 peak in
the GPU's data sheet. Everything is measured in one process. Ratios are printed last; the exit
status is 1 if one of them misses its goal. Measurements for which no time is left are listed.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from benchmarks.earlier_step import Heads, earlier_hidden, earlier_loss  # noqa: E402
from benchmarks.training_material import (  # noqa: E402
    STAGES,
    FixedBatch,
    MeasuredStage,
    build,
    fixed_batch,
    recipe_sources,
    step_operations,
)
from omnikit import linear_cross_entropy as chunking  # noqa: E402
from omnikit.bench import measure as bench  # noqa: E402
from omnikit.errors import ArgumentParser, bad_input_exits  # noqa: E402
from omnikit.evaluate.result_tables import markdown_table  # noqa: E402
from omnikit.files import write_text  # noqa: E402
from omnikit.interfaces import count_parameters  # noqa: E402
from omnikit.label_positions import LabelPositions, label_positions  # noqa: E402
from omnikit.linear_cross_entropy import Head, linear_cross_entropy  # noqa: E402
from omnikit.model import AdaptedSpeech, OmniLM  # noqa: E402
from omnikit.option_ranges import COUNT  # noqa: E402
from omnikit.tasks import AUDIO_START  # noqa: E402
from omnikit.tokens import IGNORE  # noqa: E402
from omnikit.torchrun import check_device  # noqa: E402
from omnikit.train.activation_checkpointing import checkpoint_activations  # noqa: E402
from omnikit.train.block_options import set_up_blocks  # noqa: E402
from omnikit.train.compile_blocks import compile_blocks  # noqa: E402
from omnikit.train.operations import peak_operations  # noqa: E402
from omnikit.train.transformer_blocks import plain_blocks  # noqa: E402

SECONDS = 165.0
"""Seconds from the start after which no measurement is begun on a GPU, so that all ends within three minutes."""
LENGTH = 512
"""Number of steps of a training sample."""
EARLIER, CHUNKED, FUSED, COMPILED = "earlier", "chunked", "fused", "compiled"
"""Names of the bare training loops.

These are the baseline, chunked logits, chunked logits with the operations between the products compiled, and the last
with all blocks compiled as the recipe does it, one graph for all shapes of batches.
"""
STATIC, RECOMPUTED = "static", "recomputed"
"""Names of further bare training loops: blocks compiled for each shape, and activations recomputed.

The last one is compiled like `COMPILED` on a GPU, and otherwise like `CHUNKED`.
"""
VARIANTS = (EARLIER, CHUNKED, FUSED, COMPILED, STATIC, RECOMPUTED)
RECIPE = "recipe"
COMPILING = 40.0
"""Maximum number of seconds for compiling the blocks for one shape of batch."""
HEAD_PEAK, HEAD_LOGITS, HEAD_TIME = 0.35, 0.2, 1.05
"""Maximum ratios of the chunked computation of heads and loss.

In this order: peak memory to that of the baseline, peak memory to that of float32 logits at all positions, and time to
that of the baseline.
"""
GRADIENT_ERROR = {"cpu": 1e-5, "cuda": 2e-2}
"""Maximum difference of a gradient from the baseline's relative to its norm, for the product types of each device."""
SPEEDUP, RECIPE_SHARE, MFU = 1.5, 0.95, 0.40
"""Minimum speeds of the recipe's training loop and minimum MFU.

In this order: positions per second relative to the baseline loop, the same relative to the fastest bare loop, and MFU.
"""


@dataclass(frozen=True)
class Plan:
    """Sizes of the network and its batches, and how often measurements are repeated, in one run of the benchmark."""

    small: bool  # whether the network is small
    vocabulary: int  # divisor of the true vocabulary for heads and loss
    width: int  # divisor of the true hidden width for heads and loss
    rows: dict[int, tuple[str, ...]]  # mapping from batch size to the loops that are measured with it
    steps: int  # steps that are timed together
    repeats: int
    pairs: int  # interleaved timings of heads and loss
    entries: int  # manifest entries of each source of the recipe
    recipe_steps: int
    further: tuple[str, ...] = ()  # loops that are measured at the end, with the smallest batch in the last stage


WHOLE = Plan(
    False, 1, 1, {16: VARIANTS[:4], 32: (EARLIER, COMPILED)}, steps=6, repeats=3, pairs=5,
    entries=192, recipe_steps=64, further=(STATIC, RECOMPUTED),
)  # fmt: skip
ON_CPU = Plan(True, 1, 1, {4: (EARLIER, CHUNKED)}, steps=2, repeats=3, pairs=5, entries=32, recipe_steps=8)
QUICK = Plan(
    True, 8, 4, {2: (EARLIER, CHUNKED)}, steps=1, repeats=1, pairs=3, entries=16, recipe_steps=4,
    further=(RECOMPUTED,),
)  # fmt: skip


# --- heads and loss alone


@dataclass
class HeadCase:
    """Random hidden states [8, 512, 896] with labels, and the heads of Mini-Omni, to measure heads and loss alone.

    The heads have 151936 + 64 text ids and 7 x 4160 audio ids. In the second half of each sample, every second position
    has a text label and every position has audio labels.
    """

    heads: Heads
    text: Tensor  # [B, L, D]
    audio: Tensor  # [B, L, D]
    labels: Tensor  # [B, S, L]
    found: tuple[LabelPositions, LabelPositions]
    weights: Tensor  # [S]

    @staticmethod
    def draw(device: torch.device, plan: Plan, *, trainable: bool) -> HeadCase:
        torch.manual_seed(0)
        batch, length, width, streams = 8, LENGTH, 896 // plan.width, 7
        text, audio = (151936 + 64) // plan.vocabulary, 4160 // plan.vocabulary
        options = {"bias": False, "device": device}
        layers = [nn.Linear(width, n, **options) for n in (text - 64, 64, streams * audio)]
        layers[0].requires_grad_(trainable)
        labels = torch.full((batch, 1 + streams, length), IGNORE)
        labels[:, 0, length // 2 :: 2] = torch.randint(text, (batch, length // 4))
        labels[:, 1:, length // 2 :] = torch.randint(audio, (batch, streams, length // 2))
        found = label_positions(labels[:, :1]), label_positions(labels[:, 1:])
        hidden = [torch.randn(batch, length, width, device=device, requires_grad=True) for _ in range(2)]
        return HeadCase(
            Heads((layers[0], layers[1]), layers[2], (text, *[audio] * streams)), *hidden, labels.to(device),
            tuple(LabelPositions(*(each.to(device) for each in one)) for one in found),
            torch.ones(1 + streams, device=device),
        )  # fmt: skip

    def loss(self, variant: str, chunk_bytes: int | None = None) -> Tensor:
        if variant == EARLIER:
            return earlier_loss(self.heads, self.text, self.audio, self.labels, self.weights)
        hidden = self.text.flatten(0, 1), self.audio.flatten(0, 1)
        return chunked_loss(self.heads, *hidden, *self.found, self.weights, variant != CHUNKED, chunk_bytes)

    def parameters(self) -> list[Tensor]:
        weights = [layer.weight for layer in (*self.heads.text, self.heads.audio)]
        return [each for each in (self.text, self.audio, *weights) if each.requires_grad]

    def step(self, variant: str, chunk_bytes: int | None = None) -> Tensor:
        for each in self.parameters():
            each.grad = None
        with autocast(self.text.device):
            loss = self.loss(variant, chunk_bytes)
        loss.backward()
        return loss.detach()


def chunked_loss(
    heads: Heads, text: Tensor, audio: Tensor, of_text: LabelPositions, of_audio: LabelPositions, weights: Tensor,
    compiled: bool, chunk_bytes: int | None = None,
) -> Tensor:  # fmt: skip
    """Return the weighted mean loss of hidden states [N, D] like `earlier_loss`, with logits computed in chunks."""
    counts = torch.cat([of_text.counts, of_audio.counts])
    weights = weights * (counts > 0)
    weights = weights / weights.sum().clamp(min=1e-8) / counts.clamp(min=1)
    options = {"compiled": compiled, "chunk_bytes": chunk_bytes}
    one = linear_cross_entropy(
        text, [Head(head.weight) for head in heads.text], of_text.positions, of_text.labels,
        weights=weights[:1], sizes=heads.sizes[:1], **options,
    )  # fmt: skip
    two = linear_cross_entropy(
        audio, [Head(heads.audio.weight)], of_audio.positions, of_audio.labels,
        weights=weights[1:], sizes=heads.sizes[1:], **options,
    )  # fmt: skip
    return one.total + two.total


def heads_and_loss(device: torch.device, plan: Plan) -> Iterator[dict]:
    """Yield peak memory and time of each way of computing heads and loss, with the text head trained or frozen."""
    variants = (EARLIER, CHUNKED, FUSED) if device.type == "cuda" else (EARLIER, CHUNKED)
    chunk_bytes = chunking.CHUNK_BYTES["cpu"] // plan.vocabulary  # on a GPU, too, because peaks are compared
    for trainable in (True, False):
        case = HeadCase.draw(device, plan, trainable=trainable)
        logits = 4 * case.labels.shape[0] * LENGTH * sum(case.heads.sizes)
        kept = sum(each.nbytes for each in case.parameters())  # their gradients
        losses, peaks, gradients = {}, {}, {}
        steps = {variant: partial(case.step, variant, chunk_bytes) for variant in variants}
        for variant, step in steps.items():
            losses[variant] = float(step())  # warms up, and compiles
            gradients[variant] = [each.grad for each in case.parameters()]
            for each in case.parameters():
                each.grad = None
            peaks[variant] = peak_bytes(step, device) - kept
        error = {v: _largest_error(gradients[v], gradients[EARLIER]) for v in variants[1:]}
        del gradients
        seconds: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(plan.pairs):
            for variant, step in steps.items():
                seconds[variant] += bench.timed(step, 1, device)
        for variant in variants:
            ratios = [a / b for a, b in zip(seconds[variant], seconds[EARLIER], strict=True)]
            yield {
                "name": "heads", "variant": variant, "trainable": trainable, "loss": losses[variant],
                "gib": peaks[variant] / 2**30, "to_earlier": peaks[variant] / peaks[EARLIER],
                "to_logits": peaks[variant] / logits, "ms": 1e3 * median(seconds[variant]), "time": median(ratios),
                "gradient_error": error.get(variant, 0.0), "gradient_goal": GRADIENT_ERROR[device.type],
            }  # fmt: skip
        del case, steps, step
        clear(device)


def _largest_error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest difference between two lists of gradients, relative to the norm of each gradient."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


# --- steps of the whole network


def bare_loss(model: OmniLM, batch: FixedBatch, variant: str) -> Tensor:
    """Compute the loss of a batch with one of the `VARIANTS`."""
    of_text = model.llm.lm_head, model.new_text_embeddings.head
    heads = Heads(of_text, model.new_audio_embeddings.head, model.layout.sizes)
    weights = torch.ones(model.layout.num_streams, device=model.device)
    if variant == EARLIER:
        text, audio = earlier_hidden(model, batch.steps, batch.features, batch.lengths)
        return earlier_loss(heads, text, audio, batch.labels, weights)
    adapted, lengths = model.adapter(batch.features, batch.lengths)
    hidden = model(batch.steps, AdaptedSpeech(adapted, lengths, torch.full_like(lengths, AUDIO_START)))
    flat = hidden.text.flatten(0, 1), hidden.audio.flatten(0, 1)
    compiled = variant != CHUNKED and not (variant == RECOMPUTED and model.device.type == "cpu")
    return chunked_loss(heads, *flat, batch.text, batch.audio, weights, compiled)


@contextmanager
def blocks_of(model: OmniLM, variant: str) -> Iterator[None]:
    """Context manager that lets the model's blocks be computed as a loop in `VARIANTS` says."""
    gpu = model.device.type == "cuda"
    try:
        if variant in (COMPILED, STATIC) or (variant == RECOMPUTED and gpu):
            compile_blocks(model, static=variant == STATIC)
        if variant == RECOMPUTED:
            checkpoint_activations(model)
        yield
    finally:
        plain_blocks(model)


class BareLoop:
    """A minimal training loop that cycles through fixed batches."""

    def __init__(self, model: OmniLM, stage: MeasuredStage, rows: int, variant: str):
        self.model, self.variant, self.done = model, variant, 0
        model.freeze_all_but(list(stage.trainable))
        model.train()
        batches = range(0, len(stage.tasks), 2)
        self.batches = [fixed_batch(model, stage, rows, LENGTH, seed).to(model.device) for seed in batches]
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01, fused=True)

    def step(self) -> Tensor:
        batch = self.batches[self.done % len(self.batches)]
        with autocast(self.model.device):
            loss = bare_loss(self.model, batch, self.variant)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return loss.detach()

    def operations(self) -> float:
        """Return the mean number of floating-point operations per step over the batches."""
        return sum(step_operations(self.model, batch) for batch in self.batches) / len(self.batches)


def measure_bare(model: OmniLM, stage: MeasuredStage, rows: int, variant: str, plan: Plan) -> dict:
    """Return the speed, MFU and peak memory of one bare training loop, which does nothing but training steps."""
    device, began = model.device, time.perf_counter()
    with blocks_of(model, variant):
        loop = BareLoop(model, stage, rows, variant)
        first = float(loop.step())
        for _ in loop.batches:
            loop.step()
        finish(device)
        warming, waits = time.perf_counter() - began, synchronises(loop.step, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        together = bench.timed(lambda: [loop.step() for _ in range(plan.steps)], plan.repeats, device)
        taken = [seconds / plan.steps for seconds in together]
        positions = loop.batches[0].positions
        peak = peak_operations(device, "bf16") or math.nan
        return {
            "name": "bare", "stage": stage.name, "positions": positions, "variant": variant, "first_loss": first,
            "ms": [1e3 * one for one in taken], "positions_per_second": positions / median(taken),
            "mfu": loop.operations() / median(taken) / peak, "warming_seconds": warming,
            "synchronises": waits,
            "labels": [int(sum(b.text.counts)) for b in loop.batches],
            "gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        }  # fmt: skip


# --- through the recipe


def recipe_brain() -> type:
    """Return the SpeechBrain Brain of the recipe that trains the stages."""
    script = ROOT / "recipes" / "VoiceAssistant" / "QA" / "train.py"
    spec = importlib.util.spec_from_file_location("recipe_train", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.QABrain


def timed_brain() -> type:
    """Return the recipe's Brain, extended to record the end time, positions and sequences of each step."""

    class TimedBrain(recipe_brain()):
        """A Brain that records end time, positions and sequences of each step."""

        def on_fit_start(self) -> None:
            super().on_fit_start()
            self.ends: list[tuple[float, int, int]] = []

        def on_fit_batch_end(self, batch, *rest) -> None:
            super().on_fit_batch_end(batch, *rest)
            finish(self.model.device)
            self.ends.append((time.perf_counter(), batch.steps.shape[0] * batch.steps.shape[2], len(batch.steps)))

    return TimedBrain


def brain_options(stage: MeasuredStage, steps: int, folder: str) -> dict:
    """Return what the recipe's Brain needs in its hparams to train some optimiser steps, the sampler aside."""
    from speechbrain.utils.epoch_loop import EpochCounter

    from omnikit.train.loggers import Loggers

    return {
        "stream_weights": {"text": 1.0, "audio": 1.0}, "loss_normalization": "labels", "log_steps": None,
        "validate_first": False, "tasks": dict.fromkeys(stage.tasks, 1.0),
        "peak_lr": 1e-5, "min_lr": 1e-6, "warmup_steps": 10,
        "epochs": EpochCounter(1), "steps_per_epoch": steps, "output_folder": folder, "stage": stage.name,
        "part_names": "", "validate": lambda brain: {}, "distributed": "ddp", "hang_timeout": 10.0,
        "compile_blocks": None,
        "loggers": Loggers(tensorboard=None, wandb=None, output_folder=folder),
    }  # fmt: skip


def measure_recipe(model: OmniLM, stage: MeasuredStage, positions: int, plan: Plan) -> dict:
    """Return the speed and peak memory of the recipe's whole loop; each batch is an optimiser step."""
    from omnikit.data.sample_draws import SampleDraws
    from omnikit.data.samples import make_dataset
    from omnikit.data.step_sampler import StepSampler
    from omnikit.train.loader import batch_loader

    model.freeze_all_but(list(stage.trainable))
    set_up_blocks(model, {"compile_blocks": None, "activation_checkpointing": False})
    tasks, on_gpu = dict.fromkeys(stage.tasks, 1.0), model.device.type == "cuda"
    began = time.perf_counter()
    samples = make_dataset(model, recipe_sources(model, plan.entries), tasks, 2048)
    prepared = time.perf_counter() - began
    size = {"max_batch_length": positions, "steps_per_epoch": plan.recipe_steps}
    sampler = StepSampler(SampleDraws(samples.table, tasks), **size)
    with tempfile.TemporaryDirectory() as folder:
        hparams = {**brain_options(stage, plan.recipe_steps, folder), "sampler": sampler}
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(model.device)
        brain = timed_brain()(
            {"model": model},
            lambda weights: torch.optim.AdamW(weights, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01, fused=True),
            hparams,
            {"device": str(model.device), **({"precision": "bf16"} if on_gpu else {})},
        )
        loader = batch_loader(samples, sampler, model, num_workers=None, device=model.device)
        brain.fit(hparams["epochs"], loader, None, progressbar=False)
    plain_blocks(model)
    warm = max(2, plan.recipe_steps // 2)  # the first steps compile graphs of further kinds of batches
    seconds = brain.ends[-1][0] - brain.ends[warm - 1][0]
    steps = [1e3 * (after[0] - before[0]) for before, after in pairwise(brain.ends[warm - 1 :])]
    found = sum(each[1] for each in brain.ends[warm:])
    return {
        "name": "recipe", "stage": stage.name, "positions": positions, "variant": RECIPE,
        "positions_per_second": found / seconds, "median_ms": median(steps), "slowest_ms": max(steps),
        "filled": found / len(steps) / positions,
        "sequences": sum(each[2] for each in brain.ends[warm:]) / len(steps), "prepared_seconds": prepared,
        "gib": torch.cuda.max_memory_allocated(model.device) / 2**30 if on_gpu else None,
    }  # fmt: skip


# --- tools


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def finish(device: torch.device) -> None:
    """Wait until all pending work of a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def synchronises(call: Callable[[], object], device: torch.device) -> dict[str, int]:
    """Return the source lines at which a call makes the CPU wait for the GPU, with their counts."""
    if device.type != "cuda":
        return {}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = [each for each in found if "synchronizing" in str(each.message)]
    return dict(Counter(f"{'/'.join(Path(each.filename).parts[-2:])}:{each.lineno}" for each in places))


def check_products(device: torch.device) -> None:
    """Check that matrix products are accumulated correctly in place on a GPU.

    Raises if they differ, after replacing the fused function by the plain one for later measurements.
    """
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(128, n, generator=draw).to(device, torch.bfloat16) for n in (256, 64))
    table = torch.ones(256, 64, device=device)
    expected = table + a.t().float() @ b.float()
    try:
        chunking._add_product(table, a.t(), b)
        torch.testing.assert_close(table, expected, rtol=1e-2, atol=1e-1)
    except Exception:
        chunking._add_product = lambda table, a, b: table.add_(a @ b)
        raise


def clear(device: torch.device) -> None:
    """Collect garbage and release cached GPU memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Return the peak of tensor memory during a call in bytes, beyond what was allocated before."""
    if device.type == "cuda":
        finish(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        finish(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        call()
    held = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def print_kernels(model: OmniLM, variant: str) -> None:
    """Print the kernels (operations on a CPU) that take most of the time of a stage-3 step."""
    device = model.device
    with blocks_of(model, variant):
        loop = BareLoop(model, STAGES[-1], 16 if device.type == "cuda" else 2, variant)
        for _ in range(3):
            loop.step()
        finish(device)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=activities, acc_events=True) as profiler:
            loop.step()
            finish(device)
        by = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
        print(f"\n{variant}, {STAGES[-1].name}: one step\n")
        print(profiler.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=80), flush=True)


# --- measurements, the most important first, as time may run out


class MeasuredRun:
    """A sequence of measurements with a time limit; a failed one is printed and counted, and the next is run."""

    def __init__(self, began: float, limit: float, json_file: str | None):
        self.began, self.limit, self.json_file, self.failed = began, limit, json_file, 0
        self.figures: list[dict] = []

    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    def add(self, one: dict) -> None:
        self.figures.append(one)
        print(f"{self.elapsed():.0f} s: {_short(one)}", flush=True)
        if self.json_file:
            write_text(self.json_file, json.dumps(self.figures, indent=1) + "\n")

    @contextmanager
    def part(self, name: str, needs: float = 8.0) -> Iterator[bool]:
        """Context manager that yields whether `needs` seconds are left for a measurement; exceptions are counted."""
        if self.elapsed() + needs > self.limit:
            print(f"{self.elapsed():.0f} s: no time is left for: {name}", flush=True)
            yield False
            return
        try:
            yield True
        except Exception:  # one failure must not lose the other measurements
            self.failed += 1
            print(f"{self.elapsed():.0f} s: failed: {name}", flush=True)
            traceback.print_exc()
            sys.stderr.flush()


def _short(one: dict) -> dict:
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in one.items()}


def measure_all(run: MeasuredRun, device: torch.device, plan: Plan, options: object) -> None:
    gpu = device.type == "cuda"
    if gpu:
        with run.part("products that add up"):
            check_products(device)
    if "heads" in options.parts:
        with run.part("heads and loss") as time_left:
            for one in heads_and_loss(device, plan) if time_left else ():
                run.add(one)
        clear(device)
    model = None
    with run.part("building the network"):
        model = build(device, small=plan.small)
        print(f"{run.elapsed():.0f} s: built, {count_parameters(model) / 1e6:.0f} million weights", flush=True)
    if model is None:
        return
    for rows, variants in plan.rows.items():
        for stage in reversed(STAGES):
            for variant in variants if "bare" in options.parts else ():
                with run.part(f"{stage.name}, {rows * LENGTH} positions, {variant}", _needs(variant)) as time_left:
                    if time_left:
                        run.add(measure_bare(model, stage, rows, variant, plan))
                clear(device)
            if rows == min(plan.rows) and "recipe" in options.parts:
                with run.part(f"{stage.name}, recipe", 20.0 if gpu else 8.0) as time_left:
                    if time_left:
                        run.add(measure_recipe(model, stage, rows * LENGTH, plan))
                clear(device)
        if options.profile and rows == min(plan.rows):
            for variant in (variants[-1], EARLIER):
                with run.part(f"profile, {variant}", _needs(variant)) as time_left:
                    if time_left:
                        print_kernels(model, variant)
                clear(device)
    for variant in plan.further if "bare" in options.parts and not options.variants else ():
        rows, stage = min(plan.rows), STAGES[-1]
        with run.part(f"{stage.name}, {rows * LENGTH} positions, {variant}", _needs(variant)) as time_left:
            if time_left:
                run.add(measure_bare(model, stage, rows, variant, plan))
        clear(device)


def _needs(variant: str) -> float:
    return COMPILING if variant in (COMPILED, STATIC, RECOMPUTED) else 8.0


# --- report


def report(figures: list[dict]) -> int:
    """Print tables and ratios of the measurements, and return the number of ratios that miss their limits."""
    heads = [one for one in figures if one["name"] == "heads"]
    loops = [one for one in figures if one["name"] in ("bare", "recipe")]
    if heads:
        titles = ["text head", "variant", "peak GiB", "to earlier", "to logits", "ms", "time", "gradients differ by"]
        rows = [
            ["trainable" if h["trainable"] else "frozen", h["variant"], f"{h['gib']:.3f}", f"{h['to_earlier']:.2f}",
             f"{h['to_logits']:.2f}", f"{h['ms']:.1f}", f"{h['time']:.2f}", f"{h['gradient_error']:.1e}"]
            for h in heads
        ]  # fmt: skip
        print("\nHeads and loss\n")
        print(markdown_table(titles, rows))
    if loops:
        titles = ["stage", "batch", "loop", "positions / s", "MFU %", "peak GiB"]
        rows = [
            [one["stage"], str(one["positions"]), one["variant"], f"{one['positions_per_second']:.0f}",
             f"{100 * one['mfu']:.1f}" if one.get("mfu") == one.get("mfu") and "mfu" in one else "",
             "" if one["gib"] is None else f"{one['gib']:.1f}"]
            for one in sorted(loops, key=lambda one: (one["positions"], one["stage"]))
        ]  # fmt: skip
        print("\nSteps\n")
        print(markdown_table(titles, rows))
    print()
    return sum([*_check_heads(heads), *_check_loops(loops)])


def _check_heads(heads: list[dict]) -> Iterator[bool]:
    """Yield, for each limit on heads and loss, whether the fastest variant with chunked logits violates it."""
    for trainable in (True, False):
        found = [one for one in heads if one["trainable"] is trainable and one["variant"] != EARLIER]
        if found:
            best = min(found, key=lambda one: one["time"])
            what = f"heads and loss, text head {'trainable' if trainable else 'frozen'}, {best['variant']}"
            yield _check(f"{what}: peak to the earlier one's", best["to_earlier"], HEAD_PEAK, most=True)
            yield _check(f"{what}: peak to float32 logits at all positions", best["to_logits"], HEAD_LOGITS, most=True)
            yield _check(f"{what}: time to the earlier one's", best["time"], HEAD_TIME, most=True)
            worst = max(one["gradient_error"] for one in found)
            yield _check(f"{what}: largest difference of a gradient", worst, best["gradient_goal"], most=True)


def _check_loops(loops: list[dict]) -> Iterator[bool]:
    by = {(one["stage"], one["positions"], one["variant"]): one for one in loops}
    gpu = any(one["gib"] is not None for one in loops)
    for stage, positions in dict.fromkeys(key[:2] for key in by):
        def speed(variant: str, key: tuple[str, int] = (stage, positions)) -> float | None:
            return by[(*key, variant)]["positions_per_second"] if (*key, variant) in by else None

        what, earlier = f"{stage}, {positions} positions", speed(EARLIER)
        bare = {v: speed(v) for v in VARIANTS[1:] if speed(v) is not None}
        for variant, found in bare.items():
            if earlier:
                memory = [by[(stage, positions, v)]["gib"] for v in (variant, EARLIER)]
                peak = "" if None in memory else f", peak memory {memory[0] / memory[1]:.2f} x"
                print(f"{what}: {variant} makes {found / earlier:.2f} x the positions of the earlier loop{peak}")
        for variant in bare:
            if waits := by[(stage, positions, variant)]["synchronises"]:
                print(f"{what}: a step of {variant} waits for the GPU, missed: {waits}")
                yield True
        if not gpu:
            continue  # a small network on a CPU only shows that this script works
        if COMPILED in bare:
            yield _check(f"{what}: MFU of {COMPILED}", by[(stage, positions, COMPILED)]["mfu"], MFU)
        recipe = speed(RECIPE)
        if recipe and earlier:
            yield _check(f"{what}: recipe to the earlier bare loop", recipe / earlier, SPEEDUP)
        if recipe and bare:
            yield _check(f"{what}: recipe to the fastest bare loop", recipe / max(bare.values()), RECIPE_SHARE)


def _check(what: str, found: float, goal: float, *, most: bool = False) -> bool:
    missed = not (found <= goal if most else found >= goal)
    print(f"{what}: {found:.3g} (goal {goal:g} at {'most' if most else 'least'}{', missed' if missed else ''})")
    return missed


def main() -> int:
    began = time.perf_counter()
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="use a small network and a small vocabulary")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1 or cpu")
    parser.add_argument("--parts", nargs="+", default=["heads", "bare", "recipe"], choices=["heads", "bare", "recipe"],
                        help="measurements to run, default all")  # fmt: skip
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="bare loops to measure, default all")
    parser.add_argument("--profile", action="store_true", help="print the kernels that take most of a stage-3 step")
    parser.add_argument("--threads", type=COUNT, default=2, help="number of CPU threads, default 2")
    parser.add_argument("--json", help="file to which measurements are also written, one by one")
    options = parser.parse_args()
    check_device(options.device)
    device = torch.device(options.device)
    if device.type == "cuda":
        print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}", flush=True)
    else:
        torch.set_num_threads(options.threads)
    plan = QUICK if options.quick else WHOLE if device.type == "cuda" else ON_CPU
    if options.variants:
        plan = replace(plan, rows=dict.fromkeys(plan.rows, tuple(options.variants)))
    run = MeasuredRun(began, SECONDS if device.type == "cuda" else math.inf, options.json)
    measure_all(run, device, plan, options)
    missed = report(run.figures)
    print(f"{run.failed} parts failed, {missed} goals missed, {run.elapsed():.0f} s")
    return int(run.failed > 0 or missed > 0)


if __name__ == "__main__":
    with bad_input_exits():
        status = main()
    sys.exit(status)
