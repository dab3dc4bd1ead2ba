"""Engines: what computes a model's steps while it answers, see `omnikit.model.Engine`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from omnikit.checkpoint import SHIPPED, existing
from omnikit.errors import missing_package
from omnikit.model import Engine, OmniLM
from omnikit.weights import FILE_NAME

TORCH, OPENVINO = ENGINES = ("torch", "openvino")


def open_engine(name: str, model: OmniLM, folder: str | Path | None = None, **options: Any) -> Engine:
    """An engine by name: `torch` is the model itself, on any device; `openvino` is for CPUs.

    Args:
        folder: where an engine keeps what it makes of the model's weights; it belongs to these weights alone.
        options: of the engine.

    Raises:
        ValueError: an unknown name, a package that is not installed, or a model that the engine cannot run.
    """
    if name not in ENGINES:
        raise ValueError(f"engine {name!r}: unknown (choices: {', '.join(ENGINES)})")
    if name == TORCH:
        return model
    try:
        from omnikit.engines.openvino import OpenVINOEngine
    except ModuleNotFoundError as error:
        raise ValueError(f"engine {name}: {missing_package(error.name or name)}") from None
    assert folder is not None, "openvino keeps its graphs in a folder"
    return OpenVINOEngine(model, folder, **options)


def engine_folder(checkpoint: str | Path | None) -> Path:
    """Where engines keep what they make of a checkpoint: a folder of the user's cache (`XDG_CACHE_HOME`) that belongs
    to its weights as they are now; None = the mini system of the package."""
    file = (existing(SHIPPED if checkpoint is None else checkpoint) / FILE_NAME).resolve()
    about = file.stat()
    key = hashlib.sha256(f"{file} {about.st_size} {about.st_mtime_ns}".encode()).hexdigest()[:16]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omnikit" / "engines" / key
