"""Telling whether a word of the command line names one recording or text, or many. The readers of manifests are not
needed for that, so that one answer starts without them."""

from __future__ import annotations

import os
from pathlib import Path

from omnikit.data.find_files import MANIFESTS, visible
from omnikit.tasks import TASKS

TEXT = ".txt"
"""Ending of a file with a text in each line."""


def holds_many(word: str, task: str) -> bool:
    """Return whether a word of the command line is a folder, a manifest or a file of texts, and not one recording or
    text."""
    if TASKS[task].given == "text":
        return Path(word).suffix in (*MANIFESTS, TEXT) or (os.path.isdir(word) and is_sharded(Path(word)))
    return os.path.isdir(word) or Path(word).suffix in MANIFESTS


def is_sharded(folder: Path) -> bool:
    """Return whether a folder is a manifest, of Parquet files."""
    return any(visible(folder, "*.parquet"))
