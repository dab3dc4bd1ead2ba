"""Output of benchmarks: the table of the measurements of `omnikit.bench.measure`, and goals. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles

from omnikit.evaluate.result_tables import markdown_table

Figures = dict[str, list[float]]
"""Mapping from metric, a key of `ROWS`, to its measurements in seconds, GiB, GB, GB/s or %, or as a ratio."""
ROWS = {
    # name: (label, factor)
    "encode": ("encode the question, ms", 1e3),
    "prefill": ("prefill, ms", 1e3),
    "step": ("step, one row, ms", 1e3),
    "step_batch_parallel": ("step, batch-parallel, ms", 1e3),
    "codec": ("codec, 4 frames, ms", 1e3),
    "first_sound": ("first sound after the question, ms", 1e3),
    "real_time_factor": ("real-time factor", 1),
    "peak_gib": ("peak memory, GiB", 1),
    "step_gb": ("weights read per step, GB", 1),
    "gb_per_s": ("memory is read at, GB/s", 1),
    "percent_of_floor": ("speed of a step, % of what that allows", 1),
}
"""Mapping from metric to its label in the table and the factor that converts a measurement to the label's unit."""


def table(columns: dict[str, Figures]) -> str:
    """Return a Markdown table of measurements by system; cells hold p50, and p95 if there are several values."""
    rows = [
        [words, *(_cell([factor * value for value in figures[name]]) for figures in columns.values())]
        for name, (words, factor) in ROWS.items()
    ]
    return markdown_table(["p50 / p95", *columns], rows)


def print_goals(goals: Sequence[tuple[str, bool]]) -> int:
    """Print the goals of a benchmark, each with whether it is reached; return 1 if one is missed, else 0."""
    for words, reached in goals:
        print(words if reached else f"{words}, missed")
    return int(not all(reached for _, reached in goals))


def _cell(values: list[float]) -> str:
    words = [f"{median(values):.4g}"]
    if len(values) > 1:
        words.append(f"{quantiles(values, n=20, method='inclusive')[-1]:.4g}")
    return " / ".join(words)
