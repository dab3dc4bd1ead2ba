"""The stages of a run of `run.sh`, each of which has a folder of its name in the results."""

from __future__ import annotations

from pathlib import Path

from omnikit.checkpoint import FILE_NAME

BACKBONE, ANNEALING, CONTINUED = "backbone", "anneal", "continue"
"""Names of the stages that a run may leave out."""
TITLES = {
    BACKBONE: "Backbone",
    "stage1": "Stage 1",
    "stage2": "Stage 2",
    "stage3": "Stage 3",
    ANNEALING: "Annealing",
    CONTINUED: "Continued training",
}
"""Titles of the stages by their names, in the order in which they are run."""


def trained_stages(results: Path) -> list[Path]:
    """Return the folders of the stages that trained the system, the last of which holds it as `run.sh` evaluates it."""
    folders = [results / name for name in TITLES if name != BACKBONE]
    if has_weights(results / CONTINUED):  # of a system that another run may have trained
        return [folder for folder in folders if has_weights(folder)]
    return folders[:-1] if has_weights(results / ANNEALING) else folders[:-2]


def has_weights(stage: Path) -> bool:
    """Return whether the folder of a stage holds a trained checkpoint."""
    return (stage / FILE_NAME).is_file()
