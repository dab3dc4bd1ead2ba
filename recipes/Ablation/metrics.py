"""Reads the figures of an ablation study's runs from the files that their trainings and evaluations have written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grid import MODEL, TRAIN, Grid
from plan import Run
from schedule import RunRecord

from omnikit.hparams.name_lookup import nearest
from omnikit.train.brain import LOG
from omnikit.train.plot_curves import read_log


@dataclass(frozen=True)
class Outcome:
    """The figures or the failure of one run of an ablation study; also the figures of an additional table line."""

    row: str
    seed: int
    figures: dict[str, float | None] = field(default_factory=dict)  # None: not measured
    failure: str | None = None  # error in one line
    notes: tuple[str, ...] = ()  # reasons for missing figures
    jobs: frozenset[int] = frozenset()  # values of `Grid.jobs` with which it was trained


def outcomes(grid: Grid, run: Run) -> list[Outcome]:
    """Return the results of a run and of the additional table lines of its row; [] if the run is not finished."""
    record = RunRecord(run)
    if failure := record.failure():
        return [Outcome(run.row, run.seed, failure=failure)]
    if record.left():
        return []
    sources = _sources(grid, run, record)
    at = {name: figure.at for name, figure in grid.figures.items()}
    further = {name: {**at, **r.figures} for name, r in grid.readings.items() if r.row == run.row}
    jobs = frozenset(entry["jobs"] for entry in record.steps.values() if entry["trains"])
    return [_read(grid, row, run, sources, paths, jobs) for row, paths in {run.row: at, **further}.items()]


def _read(
    grid: Grid, row: str, run: Run, sources: dict[str, Any], paths: dict[str, list[str]], jobs: frozenset[int]
) -> Outcome:
    figures, notes = {}, []
    for name, figure in grid.figures.items():
        try:
            figures[name] = figure_at(sources[figure.of], paths[name])
        except ValueError as error:
            figures[name] = None
            notes.append(f"{name}, in the result of {figure.of}: {error}")
    return Outcome(row, run.seed, figures, notes=tuple(notes), jobs=jobs)


def _sources(grid: Grid, run: Run, record: RunRecord) -> dict[str, Any]:
    folders = {step.name: step.folder for step in run.steps}
    results = {name: _result(folders[name] / evaluation.result) for name, evaluation in grid.evaluate.items()}
    return {**results, MODEL: run.model, TRAIN: _training(run, record)}


def _result(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _training(run: Run, record: RunRecord) -> dict[str, Any]:
    """Return training time, optimiser steps and the last validation of a run from the logs of its stages.

    `seconds` are those of training epochs without validation; None if a run was resumed, since the log then lacks some.
    """
    stages = [step for step in run.steps if step.trains]
    logs = [read_log(stage.folder / LOG) for stage in stages]
    whole = not any(record.steps[stage.name]["resumed"] for stage in stages)
    return {
        "seconds": sum(line["train"].get("seconds", 0.0) for log in logs for line in log) if whole else None,
        "steps": sum(log[-1]["step"] for log in logs),
        "valid": logs[-1][-1]["valid"],
    }


def figure_at(result: Any, keys: list[str]) -> float | None:
    """Return the number at a path of keys in a result; None where the evaluation has written null.

    Raises:
        ValueError: there is no such key, or the value is not a number.
    """
    for i, key in enumerate(keys):
        if result is None:
            return None
        if not isinstance(result, Mapping) or key not in result:
            inside = " > ".join(keys[:i]) or "the top"
            others = result if isinstance(result, Mapping) else ()
            raise ValueError(f"there is no {key!r} at {inside}{nearest(key, others)}")
        result = result[key]
    if result is not None and (isinstance(result, bool) or not isinstance(result, int | float)):
        raise ValueError(f"{' > '.join(keys)} is no number")
    return result
