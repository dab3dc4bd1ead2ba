"""Tables of an ablation study's results: means and deviations over seeds, and differences from the baseline."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from grid import Figure, Grid
from metrics import Outcome

from omnikit.evaluate.result_tables import MISSING, markdown_table
from omnikit.files import whole_text

Cells = dict[str, dict[str, "Cell"]]
"""Mapping from row name and figure name to the cell of the results table."""


@dataclass(frozen=True)
class Cell:
    """A cell of the results table: the values of a figure of a row for all seeds, and the mean of the baseline row."""

    values: tuple[float, ...]  # measured values of the seeds
    baseline: float | None = None  # mean of the baseline row; None for that row itself, or if it has no value

    @property
    def mean(self) -> float | None:
        return fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the sample; None for fewer than two values."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        return None if self.mean is None or self.baseline is None else self.mean - self.baseline


def line_names(grid: Grid) -> list[str]:
    """Return the names of the results table's lines: each row, followed by the additional lines of its figures."""
    return [name for row in grid.rows for name in (row, *(n for n, r in grid.readings.items() if r.row == row))]


def cells(grid: Grid, found: Sequence[Outcome]) -> Cells:
    """Return the cells of all lines of the results table that have at least one finished run."""
    made: Cells = {}
    for row in line_names(grid):
        finished = [outcome for outcome in found if outcome.row == row and outcome.failure is None]
        if finished:
            made[row] = {name: Cell(_measured(finished, name)) for name in grid.figures}
    base = made.get(grid.baseline, {})
    others = {row: {name: Cell(cell.values, base[name].mean if base else None) for name, cell in line.items()}
              for row, line in made.items() if row != grid.baseline}  # fmt: skip
    return {row: others.get(row, line) for row, line in made.items()}


def _measured(found: Sequence[Outcome], figure: str) -> tuple[float, ...]:
    return tuple(outcome.figures[figure] for outcome in found if outcome.figures[figure] is not None)


def markdown(grid: Grid, found: Sequence[Outcome]) -> str:
    """Return the results table as Markdown with title and note, an explanation of its cells, and the failed runs."""
    made = cells(grid, found)
    seeds = {row: sorted(o.seed for o in found if o.row == row and o.failure is None) for row in made}
    header = ["Row", "Seeds", *grid.figures]
    rows = [
        [_named(grid, row), str(len(seeds[row])), *(_shown(cell, grid.figures[name]) for name, cell in line.items())]
        for row, line in made.items()
    ]
    parts = [f"# {grid.title}", grid.note.strip(), _spread(grid, sorted({s for each in seeds.values() for s in each}))]
    parts += [markdown_table(header, rows) if rows else "No run is finished."]
    return "\n\n".join(part for part in (*parts, *_remarks(grid, found)) if part) + "\n"


def _named(grid: Grid, row: str) -> str:
    return f"**{row}** (baseline)" if row == grid.baseline else row


def _shown(cell: Cell, figure: Figure) -> str:
    if cell.mean is None:
        return MISSING
    text = f"{cell.mean:.{figure.decimals}f}"
    if cell.deviation is not None:
        text += f" ± {cell.deviation:.{figure.decimals}f}"
    return text if cell.difference is None else f"{text} ({cell.difference:+.{figure.decimals}f})"


def _spread(grid: Grid, seeds: list[int]) -> str:
    listed = ", ".join(map(str, seeds))
    spread = f"One seed ({listed}): how much another would change is not known."
    if len(seeds) > 1:
        spread = f"Seeds {listed}: mean ± standard deviation of the sample, where a row has more than one."
    return f"{spread} In brackets: the difference to the row `{grid.baseline}`." if seeds else ""


def _remarks(grid: Grid, found: Sequence[Outcome]) -> list[str]:
    lines = [f"- {o.row}, seed {o.seed}: failed: {o.failure}" for o in found if o.failure is not None]
    lines += [f"- {o.row}, seed {o.seed}: {note}" for o in found for note in o.notes]
    side_by_side = sorted({n for o in found for n in o.jobs if n > 1})
    if side_by_side:
        counts = " or ".join(map(str, side_by_side))
        lines.append(f"- Some were trained {counts} at a time, which lengthens their seconds of training.")
    return ["\n".join(lines)] if lines else []


def write_csv(path: Path, grid: Grid, found: Sequence[Outcome]) -> None:
    """Write a CSV file with a line per row of an ablation study: mean, deviation, seeds, difference of each figure."""
    header = ["row", "baseline"]
    header += [f"{name}{part}" for name in grid.figures for part in ("", " sd", " seeds", " difference")]
    rows = []
    for row, line in cells(grid, found).items():
        parts = [(c.mean, c.deviation, len(c.values), c.difference) for c in line.values()]
        rows.append([row, grid.baseline, *(_number(value) for each in parts for value in each)])
    _write(path, header, rows)


def write_runs_csv(path: Path, grid: Grid, found: Sequence[Outcome]) -> None:
    """Write a CSV file with one line per run of an ablation study: the measured figures, or the failure."""
    rows = [[o.row, o.seed, *(_number(o.figures.get(name)) for name in grid.figures), o.failure or ""] for o in found]
    _write(path, ["row", "seed", *grid.figures, "failure"], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _write(path: Path, header: list[str], rows: list[list]) -> None:
    with whole_text(path, newline="") as file:
        csv.writer(file).writerows([header, *rows])
