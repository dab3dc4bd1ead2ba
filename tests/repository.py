"""Functions that list the files of the repository for tests of their style."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = "results"
"""Name of the folders that training runs write to, which hold copies of scripts from the start of the run."""


def python_files(folder: str) -> list[Path]:
    """Return the Python files in a folder of the repository, relative to the root, without those of training runs."""
    names = sorted(path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py"))
    return [name for name in names if RESULTS not in name.parts]
