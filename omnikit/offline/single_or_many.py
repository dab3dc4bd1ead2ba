"""Decide whether a command line argument names one recording or text, or many.

This module does not import the manifest readers, so that a single answer starts without them.
"""

from __future__ import annotations

import os
from pathlib import Path

from omnikit.data.find_files import MANIFESTS, visible
from omnikit.tasks import TASKS

TEXT = ".txt"
"""Extension of a file with a text in each line."""


def holds_many(word: str, task: str) -> bool:
    """Return whether a command line argument names many recordings or texts: a folder, a manifest or a text file."""
    if TASKS[task].given == "text":
        return Path(word).suffix in (*MANIFESTS, TEXT) or (os.path.isdir(word) and is_sharded(Path(word)))
    return os.path.isdir(word) or Path(word).suffix in MANIFESTS


def is_sharded(folder: Path) -> bool:
    """Return whether a folder is a sharded manifest, which consists of Parquet files."""
    return any(visible(folder, "*.parquet"))
