"""The sampler of training batches on 6.6 million synthetic samples, compared with the former one.

    python benchmarks/sampler.py           # two minutes on one core
    python benchmarks/sampler.py --quick   # a tenth of the samples, within 50 s

The samples have sources, tasks and lengths like the published data (recipes/README.md). For stages 1 and 3 on 8
processes it prints padding, sequences per optimiser step, the cost of the costliest process relative to the mean, the
distinct samples among as many draws as there are samples, time and memory. The goals are printed last; the exit status
is 1 if one is missed.
"""

from __future__ import annotations

import copy
import sys
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.earlier_sampler import EarlierSampler, earlier_steps
from omnikit.data.label_cost import LabelCost
from omnikit.data.padding import STEPS, rounded
from omnikit.data.sample_draws import SampleDraws
from omnikit.data.sample_table import SampleTable
from omnikit.data.step_plan import EffectiveBatch
from omnikit.data.step_sampler import StepSampler
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.tasks import TASK_NAMES
from omnikit.torchrun import Share

STAGES = {"stage 1": ("A1T1", "T1A1"), "stage 3": TASK_NAMES}
SEQUENCES, PROCESSES, MAX_BATCH_LENGTH = 192, 8, 8000
SOURCES = ("LibriTTS1", "LibriTTS3", "LibriTTS5", "VCTK", "MLS", "Orca4", "Orca3.5", "MOSS", "VoiceAssistant")
COST = LabelCost(text=0.3, audio=0.06)
"""Cost of labels in Qwen2-0.5B with six blocks of TTS adapter and SNAC's codes."""
GOALS = {"padding": 0.02, "effective batch": 0.02, "max / mean cost of processes": 1.02}
"""Largest padding, deviation of the mean step from 192 sequences, and ratio of costs."""


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples and fewer steps")
    quick = parser.parse_args().quick
    table = synthetic_samples(0.1 if quick else 1.0)
    print(f"{len(table)} samples, {sum(column.nbytes for column in vars(table).values()) / 2**20:.0f} MiB of table")
    missed = []
    for stage, tasks in STAGES.items():
        kept = table.select(np.isin(table.tasks, [TASK_NAMES.index(task) for task in tasks]))
        missed += [f"{stage}: {goal}" for goal in compare(stage, kept, tasks, 96 if quick else 480)]
    print("goals: " + (f"missed: {', '.join(missed)}" if missed else "met"))
    return 1 if missed else 0


def compare(stage: str, table: SampleTable, tasks: Sequence[str], steps: int) -> list[str]:
    """Print the figures of both samplers for a stage and return the goals that the new one misses."""
    numbers = {TASK_NAMES.index(task): 1.0 for task in tasks}
    earlier = EarlierSampler(table.tasks, table.lengths, numbers, MAX_BATCH_LENGTH)
    print(f"{stage}, former: {report(figures(table, earlier_steps(earlier, SEQUENCES, PROCESSES, steps)))}")
    print(f"{stage}, former: {distinct(table, earlier_draws(table, numbers)):.1%} distinct samples in a pass of A1T1")
    sampler = measured_sampler(stage, table, tasks, steps)
    found = figures(table, steps_of_processes(sampler, steps))
    print(f"{stage}: {report(found)}")
    once = passes_are_whole(sampler.pools.draws) and pools_hold_their_draws(sampler)
    print(f"{stage}: {'each sample once' if once else 'NOT each sample once'} in a pass of each source and task")
    values = (found["padding"], abs(found["sequences"].mean() / SEQUENCES - 1), found["ratio"])
    print(f"{stage}: " + ", ".join(f"{g} {v:.4f} (goal {GOALS[g]})" for g, v in zip(GOALS, values, strict=True)))
    missed = [goal for goal, value in zip(GOALS, values, strict=True) if value > GOALS[goal]]
    return missed if once else [*missed, "each sample once in a pass"]


def measured_sampler(stage: str, table: SampleTable, tasks: Sequence[str], steps: int) -> StepSampler:
    """Return the sampler of a stage, and print the time and memory that it takes."""
    tracemalloc.start()
    began = time.process_time()
    draws = SampleDraws(table, dict.fromkeys(tasks, 1.0), seed=1)
    size = {"max_batch_length": MAX_BATCH_LENGTH, "steps_per_epoch": steps}
    wanted = EffectiveBatch(sequences=SEQUENCES)
    sampler = StepSampler(draws, **size, wanted=wanted, label_cost=COST, share=Share(0, PROCESSES))
    built, memory = time.process_time() - began, [value / 2**20 for value in tracemalloc.get_traced_memory()]
    tracemalloc.stop()
    began = time.process_time()
    for number in range(8):
        sampler.pool_steps(number)
    taken = (time.process_time() - began) / 8
    print(f"{stage}: {sampler.described(dict(enumerate(SOURCES)))}")
    print(
        f"{stage}: start {built:.1f} CPU-s, {memory[0]:.0f} MiB (at most {memory[1]:.0f}); {taken:.3f} CPU-s per pool "
        f"of {sampler.plan.steps} steps, {sampler.plan.draws} samples"
    )
    return sampler


def steps_of_processes(sampler: StepSampler, steps: int) -> list[list[list[list[int]]]]:
    """Return the micro-batches of each process for the first optimiser steps."""
    found: list[list[list[list[int]]]] = [[] for _ in range(steps)]
    for rank in range(PROCESSES):
        own, step = copy.copy(sampler), 0
        own.share = Share(rank, PROCESSES)
        batches: list[list[int]] = []
        for batch in own:
            batches.append(batch)
            if batch.ends_step:
                found[step].append(batches)
                step, batches = step + 1, []
    return found


def figures(table: SampleTable, steps: list[list[list[list[int]]]]) -> dict:
    """Return padding, sequences of each step and cost of the costliest process for steps of micro-batches."""
    padded = filled = 0
    costs, sequences = np.zeros((len(steps), PROCESSES)), np.zeros(len(steps))
    for number, step in enumerate(steps):
        for rank, batches in enumerate(step):
            for batch in batches:
                taken = len(batch) * int(rounded(table.lengths[batch].max(), STEPS))
                padded, filled = padded + taken, filled + int(table.lengths[batch].sum())
                labels = COST.text * table.text_labels[batch].sum() + COST.audio * table.audio_labels[batch].sum()
                costs[number, rank] += taken + labels
                sequences[number] += len(batch)
    batches = sum(len(batches) for step in steps for batches in step)
    return {
        "padding": 1 - filled / padded, "sequences": sequences, "batches": batches / len(steps),
        "ratio": costs.max(axis=1).sum() / costs.mean(axis=1).sum(), "filled": padded / batches / MAX_BATCH_LENGTH,
    }  # fmt: skip


def report(found: dict) -> str:
    low, high = np.percentile(found["sequences"], [5, 95])
    return (
        f"padding {found['padding']:.1%}; {found['sequences'].mean():.1f} sequences per step (p5 {low:.0f}, p95 "
        f"{high:.0f}) in {found['batches']:.0f} batches, {found['filled']:.0%} of {MAX_BATCH_LENGTH} steps; max / mean "
        f"cost of processes {found['ratio']:.3f}"
    )


def passes_are_whole(draws: SampleDraws) -> bool:
    """Return whether each source and task has each sample once in its first pass and once in the second."""
    for count in (1, 2):
        stop = max(int(count * len(cell) / cell.share) + 64 for cell in draws.cells)
        drawn = np.bincount(draws.between(0, stop), minlength=len(draws.table))
        for cell, number in zip(draws.cells, draws.counts(stop), strict=True):
            whole, rest = divmod(number, len(cell))
            times = drawn[cell.samples]
            if times.min() < whole or times.max() > whole + 1 or (times > whole).sum() != rest:
                return False
    return True


def pools_hold_their_draws(sampler: StepSampler) -> bool:
    """Return whether the micro-batches of the first pools are the samples of the first draws."""
    for number in range(4):
        dealt = np.concatenate([piece for step in sampler.pool_steps(number) for piece in step])
        size = sampler.plan.draws
        if not np.array_equal(np.sort(dealt), np.sort(sampler.pools.draws.between(number * size, (number + 1) * size))):
            return False
    return True


def earlier_draws(table: SampleTable, numbers: dict[int, float]) -> np.ndarray:
    """Return as many samples of A1T1 as there are, drawn by the former sampler among a part of them."""
    task = TASK_NAMES.index("A1T1")
    part = table.select(np.flatnonzero(table.tasks == task)[:: max(1, int((table.tasks == task).sum()) // 50000)])
    sampler = EarlierSampler(part.tasks, part.lengths, {task: 1.0}, MAX_BATCH_LENGTH)
    drawn: list[int] = []
    for batch in sampler:
        drawn += batch
        if len(drawn) >= len(part):
            return np.bincount(drawn[: len(part)], minlength=len(part))


def distinct(table: SampleTable, times: np.ndarray) -> float:
    return float((times > 0).mean())


def synthetic_samples(scale: float) -> SampleTable:
    """Return the table of samples of the published stages: six tasks, nine sources, 6.6 million samples x `scale`."""
    rng, rows = np.random.default_rng(0), []

    def times_about(count: float, mean: float, spread: float, low: float, high: float) -> np.ndarray:
        normal = rng.normal(np.log(mean) - spread**2 / 2, spread, int(count * scale))
        return np.exp(normal).clip(low, high)

    def add(source: int, task: str, given: np.ndarray, text: np.ndarray, frames: np.ndarray | None = None) -> None:
        audio = np.zeros_like(text) if frames is None else frames + 8  # delay and end
        labels = np.zeros_like(text) if task == "T1A1" else text + 1
        origin = [np.full(len(text), source), np.arange(len(text)), np.full(len(text), TASK_NAMES.index(task))]
        rows.append(np.stack([*origin, given + 3 + np.maximum(text, audio), labels, audio], axis=1).astype(np.int32))

    def texts(seconds: np.ndarray) -> np.ndarray:
        return np.round(3 * seconds * rng.uniform(0.7, 1.3, len(seconds)))

    for source, count in enumerate((33_200, 116_500, 205_000, 44_000)):
        seconds = times_about(count, 5.6, 0.6, 0.5, 30)
        said = texts(seconds)
        add(source, "A1T1", np.round(50 * seconds), said)
        add(source, "T1A1", said, said, np.round(11.7 * seconds))
    seconds = rng.uniform(10, 19.8, int(1_940_000 * scale))  # MLS
    add(4, "A1T1", np.round(50 * seconds), texts(seconds))
    for source, count in ((5, 1_000_000), (6, 1_000_000), (7, 240_000)):  # Open-Orca, MOSS
        both = times_about(count, 350, 0.7, 60, 1500).round()
        answer = np.round(both * rng.uniform(0.3, 0.8, len(both)))
        add(source, "T1T2", both - answer - 3, answer)
    asked, answered = times_about(470_000, 6, 0.5, 1, 25), times_about(470_000, 18, 0.5, 1, 60)  # VoiceAssistant
    heard, written, answer, frames = np.round(50 * asked), texts(asked), texts(answered), np.round(11.7 * answered)
    add(8, "A1T2", heard, answer)
    add(8, "T1T2", written, answer)
    add(8, "A1A2", heard, answer, frames)
    add(8, "T1A2", written, answer, frames)
    return SampleTable(*np.concatenate(rows).T.copy())


if __name__ == "__main__":
    with bad_input_exits():
        sys.exit(main())
