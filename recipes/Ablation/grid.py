"""The definition of an ablation study: dataclasses for its YAML file, which is validated while it is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omnikit.hparams import resolve
from omnikit.hparams.name_lookup import nearest
from omnikit.hparams.recipe import build

Kind = TypeVar("Kind")
MODEL, TRAIN = "model", "train"
"""Names of the sources of figures in a results table other than evaluations: the model's parts, the training log."""


@dataclass(frozen=True)
class Preparation:
    """A preparation of an ablation study: a command that is run before all trainings if its output file is missing."""

    makes: str  # path of the file that it writes
    command: list[str]  # the word `python` is replaced by the running interpreter


@dataclass(frozen=True)
class Stage:
    """One of the trainings that are run for every row of an ablation study.

    Its flags override those of `base` and are overridden by the row's, `--seed` and `--output_folder`.
    """

    script: str
    files: list[str]  # the recipe, then YAML files of overrides
    flags: dict[str, Any] = field(default_factory=dict)
    after: str | None = None  # name of the stage whose folder is passed as `--initial_weights`


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the system that the last training stage of an ablation study gives.

    `--checkpoint` and `--output_folder` are added to its flags.
    """

    script: str
    files: list[str]
    result: str  # the JSON file that it writes to its output folder
    flags: dict[str, Any] = field(default_factory=dict)
    answer_seconds: float | None = None  # maximum length of an answer, converted to `--decoding.max_steps`
    alone: bool = False  # whether nothing else may run at the same time, since it measures time


@dataclass(frozen=True)
class Figure:
    """A figure that an ablation study reports for every row, as a column of its results table."""

    of: str  # source: the name of an evaluation, `model` or `train`
    at: list[str]  # keys that lead to the figure in the source's result
    decimals: int = 1


@dataclass(frozen=True)
class Reading:
    """An additional line of the results table that takes some figures from other places in a row's result files."""

    row: str
    figures: dict[str, list[str]]  # figure -> keys that lead to it, instead of the figure's own


@dataclass(frozen=True)
class Grid:
    """The complete definition of an ablation study; every field must be a key of its YAML file."""

    title: str
    note: str  # text above the table: fixed conditions, duration
    output_folder: str
    seeds: list[int]
    jobs: int  # maximum number of concurrent runs
    baseline: str  # name of the row that others are compared with
    base: dict[str, Any]  # flags of every training
    rows: dict[str, dict[str, Any]]  # name -> flags of its trainings
    readings: dict[str, Reading]
    prepare: dict[str, Preparation]
    train: dict[str, Stage]
    evaluate: dict[str, Evaluation]
    figures: dict[str, Figure]
    plots: list[list[str]]  # pairs of figures, plotted against each other

    @property
    def folder(self) -> Path:
        return Path(self.output_folder)


PARTS = {
    "readings": Reading,
    "prepare": Preparation,
    "train": Stage,
    "evaluate": Evaluation,
    "figures": Figure,
}


def read_grid(path: str, settings: Mapping[str, Any]) -> Grid:
    """Read the YAML file of an ablation study with the settings of the command line, and validate it.

    Top-level keys that are not fields of `Grid` are allowed, as targets of `!ref`.

    Raises:
        ValueError: a key is missing, unknown or of the wrong type, or a name refers to nothing.
    """
    _, text = resolve(path, settings)
    content = build(text, path)
    known = {name: content[name] for name in _options(Grid) if name in content}
    for name in _options(Grid):
        if name not in content:
            others = [key for key in content if key not in known]
            raise ValueError(f"{path}: {name} is missing{nearest(name, others) if others else ''}")
    for name, kind in PARTS.items():
        _check_kind(name, known[name], dict[str, Any])
        known[name] = {key: _fill(kind, f"{name}.{key}", options) for key, options in known[name].items()}
    grid = _fill(Grid, "", known)
    _check_names(grid)
    return grid


def some_rows(grid: Grid, chosen: Any) -> list[str]:
    """Return the names of the rows of an ablation study that `--rows` selects, one name or a list; None = all.

    Raises:
        ValueError: there is no row of that name.
    """
    if chosen is None:
        return list(grid.rows)
    names = [str(name) for name in (chosen if isinstance(chosen, list) else [chosen])]
    for name in names:
        _known("--rows", name, grid.rows)
    return names


def slug(name: str) -> str:
    """Return the name of an ablation's row as a folder name: `text lead 4` becomes `text_lead_4`."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_.").lower()


def _options(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fill(kind: type[Kind], where: str, options: Any) -> Kind:
    _check_kind(where, options, dict[str, Any])
    hints, prefix = _options(kind), f"{where}." if where else ""
    for key, value in options.items():
        if key not in hints:
            raise ValueError(f"{prefix}{key}: no such option{nearest(key, hints)}")
        _check_kind(f"{prefix}{key}", value, hints[key])
    for each in fields(kind):
        if each.name not in options and each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{prefix}{each.name}: is missing")
    return kind(**options)


_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}


def _check_kind(where: str, value: Any, hint: Any) -> None:
    """Raise `ValueError` if a value, or an element of a list or mapping, is not of the type of an annotation."""
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    if value is None and type(None) in kinds:
        return
    outer, inner = get_origin(kinds[0]) or kinds[0], get_args(kinds[0])
    if outer is Any:
        return
    if outer in _WORDS:  # dataclasses are checked when they are built
        right = isinstance(value, (int, float) if outer is float else outer)
        if not right or (isinstance(value, bool) and outer is not bool):
            raise ValueError(f"{where}: {value!r} must be {_WORDS[outer]}")
    for child in value if outer is list else ():
        _check_kind(where, child, inner[0])
    for key, child in value.items() if outer is dict else ():
        _check_kind(where, key, inner[0])
        _check_kind(f"{where}.{key}", child, inner[1])


def _check_names(grid: Grid) -> None:
    for name in ("seeds", "rows", "train", "figures"):
        if not getattr(grid, name):
            raise ValueError(f"{name}: is empty")
    if grid.jobs < 1:
        raise ValueError(f"--jobs {grid.jobs}: must be 1 or more")
    _known("baseline", grid.baseline, grid.rows)
    for name, stage in grid.train.items():
        before = list(grid.train)[: list(grid.train).index(name)]
        if stage.after is not None:
            _known(f"train.{name}.after", stage.after, before)
    for name, figure in grid.figures.items():
        _known(f"figures.{name}.of", figure.of, (MODEL, TRAIN, *grid.evaluate))
    for name, reading in grid.readings.items():
        _known(f"readings.{name}.row", reading.row, grid.rows)
        for figure in reading.figures:
            _known(f"readings.{name}.figures", figure, grid.figures)
    for pair in grid.plots:
        if len(pair) != 2:
            raise ValueError(f"plots: {pair} must be two figures")
        for figure in pair:
            _known("plots", figure, grid.figures)
    _check_folders(grid)


def _check_folders(grid: Grid) -> None:
    """Raise `ValueError` if two rows, or two steps of a row, share a folder, or an additional line has a row's name."""
    for where, names in (("rows", grid.rows), ("train and evaluate", [*grid.train, *grid.evaluate])):
        taken: dict[str, str] = {}
        for name in names:
            if slug(name) in ("", *taken):
                other = f" as {taken[slug(name)]} has" if slug(name) else ""
                raise ValueError(f"{where}: {name} would have the folder {slug(name)!r}{other}; give it another name")
            taken[slug(name)] = name
    both = [name for name in grid.readings if name in grid.rows]
    if both:
        raise ValueError(f"readings: {both[0]} is the name of a row")


def _known(where: str, name: str, names: Iterable[str]) -> None:
    if name not in names:
        raise ValueError(f"{where} {name}: there is none of that name{nearest(name, names)}")
