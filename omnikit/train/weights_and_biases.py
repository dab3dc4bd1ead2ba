"""Logging to Weights & Biases, by the Python package wandb."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnikit.files import write_text

ID_FILE = "wandb_run_id.txt"
"""Name of the file in the output folder with the id of the run, under which a resumed training goes on."""


class WeightsAndBiases:
    """A logger that sends the figures of each epoch to a run of Weights & Biases, begun at the first of them.

    Args:
        options: name of a project, or options of `wandb.init`, such as `{project: mine, mode: offline}`.
        output_folder: output folder of the training, in which wandb keeps its files.

    Raises:
        ValueError: the package is not installed.
    """

    def __init__(self, options: str | Mapping[str, Any], output_folder: str):
        if importlib.util.find_spec("wandb") is None:
            raise ValueError(f"--wandb {options}: needs the Python package wandb: pip install omnikit[wandb]")
        self.options = {"project": options} if isinstance(options, str) else dict(options)
        self.folder, self.run = Path(output_folder), None

    def log_stats(self, where: dict, train: dict, valid: dict) -> None:
        """Send training and validation figures of an epoch as `train/...` and `valid/...`."""
        if self.run is None:
            self.run = self._begin(where)
        figures = {f"train/{name}": value for name, value in train.items()}
        figures |= {f"valid/{name}": value for name, value in valid.items()}
        self.run.log({"epoch": where["epoch"], **figures}, step=where["step"])

    def _begin(self, where: dict) -> Any:
        """Return the run of Weights & Biases of this output folder, a new one or the one of before."""
        import wandb

        file = self.folder / ID_FILE
        if not file.exists():
            write_text(file, secrets.token_hex(4))
        config = {name: where[name] for name in ("stage", "parts") if name in where}
        options = {"name": f"{where['stage']} {self.folder.name}", "config": config, **self.options}
        return wandb.init(dir=str(self.folder), id=file.read_text(encoding="utf-8"), resume="allow", **options)
