"""The stages of a run of `run.sh`, each of which has a folder of its name in the results."""

from __future__ import annotations

from pathlib import Path

from omnikit.checkpoint import FILE_NAME

BACKBONE, CONTINUED, ANNEALING = "backbone", "continue", "anneal"
"""Names of the stages that a run may leave out; the second one is in place of stages 1 to 3."""
TITLES = {
    BACKBONE: "Backbone",
    "stage1": "Stage 1",
    "stage2": "Stage 2",
    "stage3": "Stage 3",
    CONTINUED: "Continued training",
    ANNEALING: "Annealing",
}
"""Titles of the stages by their names, in the order in which they are run."""


def trained_stages(results: Path) -> list[Path]:
    """Return the folders of the stages that trained the system, the last of which holds it as `run.sh` evaluates it."""
    names = [CONTINUED] if has_weights(results / CONTINUED) else ["stage1", "stage2", "stage3"]
    if has_weights(results / ANNEALING):
        names.append(ANNEALING)
    return [results / name for name in names]


def has_weights(stage: Path) -> bool:
    """Return whether the folder of a stage holds a trained checkpoint."""
    return (stage / FILE_NAME).is_file()
