"""Engines: what computes prefill and decode steps, see `omnikit.interfaces.Engine`. How one is chosen stands here."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from omnikit import checkpoint as checkpoints
from omnikit.engines.torch import TorchEngine
from omnikit.errors import missing_package
from omnikit.interfaces import Engine
from omnikit.model import OmniLM

TORCH, STATIC, COMPILED, OPENVINO = ENGINES = ("torch", "static", "compiled", "openvino")
AUTO = "auto"
"""`static` where it can run the backbone, else `torch`."""
OF_TORCH = (AUTO, TORCH, STATIC, COMPILED)
"""Those that compute with the model's own weights, on any device; `openvino` has weights of its own."""


def open_engine(name: str, model: OmniLM, folder: str | Path | None = None, **options: Any) -> Engine:
    """Return an engine by name: `torch` computes with the model's own modules, `static` over caches of fixed size (on a
    GPU a decode step is one CUDA graph), `compiled` the same compiled by torch; `openvino` is for CPUs; `auto` chooses.

    Args:
        folder: where `openvino` keeps what it makes of the model's weights; it belongs to these weights alone.
        options: of the engine.

    Raises:
        ValueError: an unknown name, a package that is not installed, or a model that the engine cannot run.
    """
    check_engine(name)
    if name == AUTO:
        name = _fastest(model)
    if name == TORCH:
        return TorchEngine(model)
    if name in OF_TORCH:
        from omnikit.engines.static import StaticEngine

        return StaticEngine(model, compiled=name == COMPILED)
    if folder is None:
        raise ValueError(f"engine {name}: needs a folder, in which it keeps what it makes of the model's weights")
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
    if name not in (AUTO, *ENGINES):
        raise ValueError(f"engine {name!r}: unknown (choices: {', '.join((AUTO, *ENGINES))})")
    if name == COMPILED:
        _check_compiler()


def _fastest(model: OmniLM) -> str:
    """Return the name of the engine that `auto` stands for. On a GPU, where it decides about most of the speed, it is
    printed on stderr."""
    from omnikit.engines.static import why_not

    reason = why_not(model)
    if model.device.type == "cuda":
        print(f"engine: {STATIC}" if reason is None else f"engine: {TORCH} ({reason})", file=sys.stderr)
    return STATIC if reason is None else TORCH


def _check_compiler() -> None:
    """Refuse `compiled` where torch would find no compiler, which it says at the first step only, in many lines.

    Raises:
        ValueError: there is none.
    """
    from omnikit.engines.static import find_compiler, wanted_compiler

    if find_compiler() is None:
        raise ValueError(f"engine {COMPILED}: no C++ compiler {wanted_compiler()}; install it, or name another in CXX")


def _openvino() -> ModuleType:
    try:
        return importlib.import_module("omnikit.engines.openvino")
    except ModuleNotFoundError as error:
        raise ValueError(f"engine {OPENVINO}: {missing_package(error.name or OPENVINO)}") from None


def engine_folder(checkpoint: str | Path | None) -> Path:
    """Return the folder in which engines keep what they make of a checkpoint: a folder of the user's cache
    (`XDG_CACHE_HOME`) that belongs to its weights and parts as they are now; None = the mini system of the package.

    Raises:
        ValueError: there are no weights.
    """
    file = checkpoints.weights_of(checkpoint).resolve()
    about = file.stat()
    parts = file.with_name(checkpoints.HPARAMS)
    key = hashlib.sha256(f"{file} {about.st_size} {about.st_mtime_ns}".encode())
    key.update(parts.read_bytes() if parts.is_file() else b"")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "omnikit" / "engines" / key.hexdigest()[:16]
