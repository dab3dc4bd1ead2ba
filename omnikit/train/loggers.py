"""Loggers of the figures of each epoch; a recipe chooses which of them are on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from omnikit.train.weights_and_biases import WeightsAndBiases


class EpochLogger(Protocol):
    """A logger that receives the figures of each epoch, as flat mappings from names to numbers."""

    def log_stats(self, where: dict, train: dict, valid: dict) -> None:
        """Log training and validation figures; `where` has stage, parts, and the numbers of epoch and step."""
        ...


class Loggers:
    """All loggers of a run, to which nested figures are passed under names such as `tasks/A1T1/loss`.

    Args:
        tensorboard: TensorBoard logger; None = off.
        wandb: project or options of `WeightsAndBiases`; None = off.
        output_folder: output folder of the run.
    """

    def __init__(self, *, tensorboard: EpochLogger | None, wandb: str | Mapping[str, Any] | None, output_folder: str):
        chosen = [tensorboard, None if wandb is None else WeightsAndBiases(wandb, output_folder)]
        self.loggers = [logger for logger in chosen if logger is not None]

    def log_stats(self, where: dict, train: Mapping[str, Any], valid: Mapping[str, Any]) -> None:
        """Pass the figures of an epoch to each logger."""
        for logger in self.loggers:
            logger.log_stats(where, flat(train), flat(valid))


def flat(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested figures as one mapping, with names such as `tasks/A1T1/loss`."""
    found = {}
    for name, value in figures.items():
        found |= {f"{name}/{k}": v for k, v in flat(value).items()} if isinstance(value, Mapping) else {name: value}
    return found
