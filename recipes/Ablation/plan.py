"""Plans the commands of an ablation study's runs, and checks each against its recipe before anything is started."""

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
"""Number of frames over which decode steps per second are counted, so that the delays at the start do not matter."""


@dataclass(frozen=True)
class ScriptCall:
    """One call of a training or evaluation script, with an output folder of its own."""

    name: str
    folder: Path  # its `--output_folder`
    words: list[str]  # script, files, flags
    settings: dict[str, Any]  # `recipe`, the YAML text with all overrides applied; `run_options`
    trains: bool = False  # whether it is a training
    alone: bool = False  # whether nothing else may run at the same time


@dataclass(frozen=True)
class Run:
    """One row of an ablation study with one seed: its trainings, followed by its evaluations."""

    row: str
    seed: int
    folder: Path
    steps: list[ScriptCall]
    model: dict[str, float] = field(default_factory=dict)  # see `model_figures`

    @property
    def title(self) -> str:
        return f"{self.row}, seed {self.seed}"


def plan_run(grid: Grid, row: str, seed: int, run_options: Mapping[str, Any]) -> Run:
    """Plan the trainings and evaluations of a row with one seed, after building its model on the meta device.

    Args:
        run_options: SpeechBrain's run options, passed to every script.

    Raises:
        ValueError: a recipe does not know a flag, or parts cannot be built; the message names the row.
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
    """Return a script call with the flags of several mappings, of which later ones override earlier ones.

    Args:
        folder: folder of the run, in which the script gets a folder of its own.

    Raises:
        ValueError: the recipe does not know a flag, or there is no such script.
    """
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
    """Return a flag's value for a command line: a string unchanged if YAML reads it as that string, else JSON."""
    if isinstance(value, str):
        try:
            if parse_value(flag, value) == value:
                return value
        except ValueError:
            pass  # needs the quotes that JSON gives it
    return json.dumps(value)


def _model(stage: ScriptCall) -> tuple[OmniLM, dict[str, float]]:
    """Return the system that a stage trains, built on the meta device, and the figures that follow from its parts."""
    source, text = stage.words[1], stage.settings["recipe"]
    with torch.device("meta"):
        model = build(dump_parts(text), source).get(MODEL)
    if not isinstance(model, OmniLM):
        raise ValueError(f"{source}: names no model (`model: !new:omnikit.model.OmniLM`)")
    return model, model_figures(model, read_tree_text(text, source).get("trainable") or [])


def model_figures(model: OmniLM, trainable: list[str]) -> dict[str, float]:
    """Return the figures of a system that are known without training: parameters, streams, decode steps per second.

    Args:
        trainable: names of the parts that are trained.
    """
    pattern = model.pattern
    steps_per_frame = (pattern.num_steps(2 * MANY) - pattern.num_steps(MANY)) / MANY
    trained = [module for name, module in model.parts().items() if name in trainable]
    return {
        "parameters_in_millions": count_parameters(model) / 1e6,
        "trainable_in_millions": sum(map(count_parameters, trained)) / 1e6,
        "streams": model.layout.num_streams,
        "steps_per_second": steps_per_frame * model.codec.frame_rate,
    }
