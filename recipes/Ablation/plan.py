"""From a grid to the commands that are run, each checked against its recipe before anything starts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from grid import Evaluation, Grid, Stage, slug

from omnikit.hparams import dump_parts, resolve, split_command_line
from omnikit.hparams.command_line import parse_value
from omnikit.hparams.recipe import MODEL, build
from omnikit.hparams.yaml_tree import read_tree_text
from omnikit.interfaces import count_parameters
from omnikit.model import OmniLM

MANY = 1000
"""Frames over which the steps per second are counted: what the first frames wait for does not matter then."""


@dataclass(frozen=True)
class ScriptCall:
    """One call of a script, in a folder of its own."""

    name: str
    folder: Path  # its `--output_folder`
    words: list[str]  # script, files, flags
    settings: dict[str, Any]  # `recipe`, the YAML text with every choice made; `run_options`
    trains: bool = False
    alone: bool = False


@dataclass(frozen=True)
class Run:
    """One row with one seed: its trainings, then its evaluations."""

    row: str
    seed: int
    folder: Path
    steps: list[ScriptCall]
    model: dict[str, float] = field(default_factory=dict)  # figures that the parts tell

    @property
    def title(self) -> str:
        return f"{self.row}, seed {self.seed}"


def plan_run(grid: Grid, row: str, seed: int, run_options: Mapping[str, Any]) -> Run:
    """Args:
        run_options: SpeechBrain's, for every step.

    Raises:
        ValueError: a flag that the recipe does not know, or parts that cannot be built; the row is named.
    """
    folder = grid.folder / slug(row) / f"seed{seed}"
    try:
        stages = [_training(grid, name, row, seed, folder, run_options) for name in grid.train]
        model, figures = _model(stages[-1])
        last = stages[-1].folder
        evaluations = [
            _evaluation(name, options, model, last, folder, run_options) for name, options in grid.evaluate.items()
        ]
    except ValueError as error:
        raise ValueError(f"row {row}: {error}") from None
    return Run(row, seed, folder, [*stages, *evaluations], figures)


def _training(grid: Grid, name: str, row: str, seed: int, folder: Path, run_options: Mapping[str, Any]) -> ScriptCall:
    stage = grid.train[name]
    own = {"seed": seed, "output_folder": str(folder / slug(name))}
    if stage.after is not None:
        own["initial_weights"] = str(folder / slug(stage.after))
    return _step(name, stage, [grid.base, stage.flags, grid.rows[row], run_options, own], folder, trains=True)


def _evaluation(
    name: str, evaluation: Evaluation, model: OmniLM, checkpoint: Path, folder: Path, run_options: Mapping[str, Any]
) -> ScriptCall:
    own = {"checkpoint": str(checkpoint), "output_folder": str(folder / slug(name))}
    if evaluation.answer_seconds is not None:
        frames = math.ceil(evaluation.answer_seconds * model.codec.frame_rate)
        own["decoding.max_steps"] = model.pattern.num_steps(frames)
    return _step(name, evaluation, [evaluation.flags, run_options, own], folder, alone=evaluation.alone)


def _step(
    name: str,
    what: Stage | Evaluation,
    flags: list[Mapping[str, Any]],
    folder: Path,
    *,
    trains: bool = False,
    alone: bool = False,
) -> ScriptCall:
    """A script with its flags, of which a later one wins; `folder` is the run's."""
    words = [*what.files, *(f"--{key}={as_text(key, value)}" for each in flags for key, value in each.items())]
    try:
        path, run_options, settings = split_command_line(words)
        _, text = resolve(path, settings)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not Path(what.script).is_file():
        raise ValueError(f"{name}: {what.script}: no such file")
    about = {"recipe": text, "run_options": run_options}
    return ScriptCall(name, folder / slug(name), [what.script, *words], about, trains, alone)


def as_text(flag: str, value: Any) -> str:
    """A flag's value as one types it: text as it is where YAML reads it as that text, else JSON."""
    if isinstance(value, str):
        try:
            if parse_value(flag, value) == value:
                return value
        except ValueError:
            pass  # needs the quotes that JSON gives it
    return json.dumps(value)


def _model(stage: ScriptCall) -> tuple[OmniLM, dict[str, float]]:
    """The system that a stage trains, on the meta device, and its figures."""
    source, text = stage.words[1], stage.settings["recipe"]
    with torch.device("meta"):
        model = build(dump_parts(text), source).get(MODEL)
    if not isinstance(model, OmniLM):
        raise ValueError(f"{source}: names no model (`model: !new:omnikit.model.OmniLM`)")
    return model, model_figures(model, read_tree_text(text, source).get("trainable") or [])


def model_figures(model: OmniLM, trainable: list[str]) -> dict[str, float]:
    """What needs no training to be known."""
    pattern = model.pattern
    steps_per_frame = (pattern.num_steps(2 * MANY) - pattern.num_steps(MANY)) / MANY
    trained = [module for name, module in model.parts().items() if name in trainable]
    return {
        "parameters_in_millions": count_parameters(model) / 1e6,
        "trainable_in_millions": sum(map(count_parameters, trained)) / 1e6,
        "streams": model.layout.num_streams,
        "steps_per_second": steps_per_frame * model.codec.frame_rate,
    }
