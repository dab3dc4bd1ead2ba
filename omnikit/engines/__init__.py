"""Engines: what computes a model's steps while it answers, see `omnikit.model.Engine`."""

from __future__ import annotations

import hashlib
import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from omnikit import checkpoint as checkpoints
from omnikit.engines.static import StaticEngine, find_compiler, wanted_compiler
from omnikit.errors import missing_package
from omnikit.model import Engine, OmniLM

TORCH, STATIC, COMPILED, OPENVINO = ENGINES = ("torch", "static", "compiled", "openvino")
OF_TORCH = (TORCH, STATIC, COMPILED)
"""Those that compute with the model's own weights, on any device; `openvino` has weights of its own."""


def open_engine(name: str, model: OmniLM, folder: str | Path | None = None, **options: Any) -> Engine:
    """An engine by name: `torch` is the model itself, `static` its steps over caches of fixed size (on a GPU one CUDA
    graph), `compiled` those compiled by torch; `openvino` is for CPUs.

    Args:
        folder: where `openvino` keeps what it makes of the model's weights; it belongs to these weights alone.
        options: of the engine.

    Raises:
        ValueError: an unknown name, a package that is not installed, or a model that the engine cannot run.
    """
    check_engine(name)
    if name == TORCH:
        return model
    if name in OF_TORCH:
        return StaticEngine(model, compiled=name == COMPILED)
    assert folder is not None, "openvino keeps its graphs in a folder"
    return _openvino().OpenVINOEngine(model, folder, **options)


def load_openvino(checkpoint: str | Path | None, **options: Any) -> tuple[OmniLM, Engine]:
    """A checkpoint's model on the CPU and `openvino` for it, without what that does not need of the model.

    Args:
        checkpoint: as for `omnikit.checkpoint.load`.
        options: of the engine.

    Raises:
        ValueError: as `open_engine` and `omnikit.checkpoint.load`.
    """
    module, folder = _openvino(), engine_folder(checkpoint)
    if not module.is_converted(folder, **options):
        module.convert(checkpoints.load(checkpoint), folder, **options)
    model = checkpoints.load(checkpoint, skeleton=True)
    return model, module.OpenVINOEngine(model, folder, **options)


def check_engine(name: str) -> None:
    """Refuse an unknown name, and one that cannot work on this machine.

    Raises:
        ValueError: see there.
    """
    if name not in ENGINES:
        raise ValueError(f"engine {name!r}: unknown (choices: {', '.join(ENGINES)})")
    if name == COMPILED and find_compiler() is None:  # torch says so at the first step only, in many lines
        raise ValueError(f"engine {name}: no C++ compiler {wanted_compiler()}; install it, or name another in CXX")


def _openvino() -> ModuleType:
    try:
        return importlib.import_module("omnikit.engines.openvino")
    except ModuleNotFoundError as error:
        raise ValueError(f"engine {OPENVINO}: {missing_package(error.name or OPENVINO)}") from None


def engine_folder(checkpoint: str | Path | None) -> Path:
    """Where engines keep what they make of a checkpoint: a folder of the user's cache (`XDG_CACHE_HOME`) that belongs
    to its weights as they are now; None = the mini system of the package.

    Raises:
        ValueError: there are no weights.
    """
    file = checkpoints.weights_of(checkpoint).resolve()
    about = file.stat()
    key = hashlib.sha256(f"{file} {about.st_size} {about.st_mtime_ns}".encode()).hexdigest()[:16]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omnikit" / "engines" / key
