"""Plots the results of an ablation study: every figure of every row, and pairs of figures against each other."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from grid import Grid
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from table import Cell, Cells

from omnikit.files import whole_file

COLUMNS = 3
WIDTH = 4.2  # inches per panel
COLOR, BASE = "#1f5fa8", "#c2410c"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ecf1",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}


def draw_figures(path: Path, grid: Grid, made: Cells) -> None:
    """Draw an ablation's results, one panel per figure with one bar per row, and save the picture.

    A bar shows the mean with its standard deviation, dots the values of the seeds, a dashed line the baseline's mean.
    """
    names = list(grid.figures)
    lines = math.ceil(len(names) / COLUMNS)
    size = (WIDTH * COLUMNS, lines * (0.9 + 0.28 * len(made)))
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(lines, COLUMNS, figsize=size, squeeze=False, sharey=True, layout="constrained")
        for axis, name in zip(axes.flat, names, strict=False):
            _panel(axis, name, {row: line[name] for row, line in made.items()}, grid.baseline)
        for axis in axes.flat[len(names) :]:
            axis.remove()
        _save(figure, path)


def _panel(axis: Axes, title: str, column: dict[str, Cell], baseline: str) -> None:
    for y, (row, cell) in enumerate(column.items()):
        color = BASE if row == baseline else COLOR
        if cell.mean is not None:
            axis.barh(y, cell.mean, color=color, alpha=0.35, height=0.6, xerr=cell.deviation)
            axis.plot(cell.values, [y] * len(cell.values), "o", color=color, markersize=3.5)
    base = column[baseline].mean if baseline in column else None
    if base is not None:
        axis.axvline(base, color=BASE, linestyle="--", linewidth=1)
    axis.set(title=title, xlim=(0, None), ylim=(len(column) - 0.4, -0.6), yticks=range(len(column)))
    axis.set_yticklabels(column)
    axis.grid(visible=False, axis="y")


TOGETHER = (90, 12)
"""Horizontal and vertical distance in pixels within which labels of points would overlap."""


def draw_against(path: Path, grid: Grid, made: Cells) -> None:
    """Draw an ablation's figures against each other, one panel per pair with one point per row; save the picture."""
    with pyplot.rc_context(STYLE):
        size = (6 * len(grid.plots), 4.5)
        figure, axes = pyplot.subplots(1, len(grid.plots), figsize=size, squeeze=False, layout="constrained")
        points: dict[Axes, dict[str, tuple[float, float]]] = {}
        for axis, (x, y) in zip(axes[0], grid.plots, strict=True):
            drawn = {row: line for row, line in made.items() if line[x].mean is not None and line[y].mean is not None}
            for row, line in drawn.items():
                _point(axis, line[x], line[y], BASE if row == grid.baseline else COLOR)
            axis.set(xlabel=x, ylabel=y)
            axis.margins(0.15)
            points[axis] = {row: (line[x].mean, line[y].mean) for row, line in drawn.items()}
        figure.draw_without_rendering()  # determines the positions of points in pixels
        for axis, of in points.items():
            _name(axis, of)
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=110, format=path.suffix[1:])
    pyplot.close(figure)


def _point(axis: Axes, x: Cell, y: Cell, color: str) -> None:
    axis.errorbar(x.mean, y.mean, xerr=x.deviation, yerr=y.deviation, fmt="o", color=color, markersize=5)


def _name(axis: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Write the names of rows beside their points, one below the other where points are close together."""
    to_pixels, named = axis.transData.transform, []
    for row, point in points.items():
        place = to_pixels(point)
        below = sum(abs(place[0] - x) < TOGETHER[0] and abs(place[1] - y) < TOGETHER[1] for x, y in named)
        named.append(place)
        offset = (5, 4 - 10 * below)
        axis.annotate(row, point, xytext=offset, textcoords="offset points", fontsize=8)
