"""Engines, the implementations that compute prefill and decode steps (`omnikit.interfaces.Engine`), by name."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Mapping
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
"""Engine name that chooses an engine automatically: `static` if it can run the backbone, else `torch`."""
TORCH_ENGINES = (AUTO, TORCH, STATIC, COMPILED)
"""Names of the engines that use the model's own weights on any device; `openvino` has its own copy of them."""


def open_engine(name: str, model: OmniLM, folder: str | Path | None = None, **options: Any) -> Engine:
    """Return the engine of a given name for a model.

    `torch` computes with the model's own modules; `static` decodes over a KV cache of fixed size (on a GPU a decode
    step is one CUDA graph); `compiled` is `static` compiled by torch; `openvino` is for CPUs; `auto` chooses `static`
    or `torch`.

    Args:
        name: one of `ENGINES`, or `auto`.
        model: model whose weights are used.
        folder: folder in which `openvino` stores the graphs that it converts the model to; it must belong to these
            weights alone.
        options: further arguments of the engine's constructor.

    Raises:
        ValueError: an unknown name, a package that is not installed, or a model that the engine cannot run.
    """
    check_engine(name)
    if name == AUTO:
        name = _fastest(model)
    if name == TORCH:
        return TorchEngine(model)
    if name in TORCH_ENGINES:
        from omnikit.engines.static import StaticEngine

        return StaticEngine(model, compiled=name == COMPILED)
    if folder is None:
        raise ValueError(f"engine {name}: needs a folder for the graphs that it converts the model to")
    return _openvino().OpenVINOEngine(model, folder, **options)


def load_openvino(
    checkpoint: str | Path | None, *, public_weights: Mapping[str, str | Path] | None = None, **options: Any
) -> tuple[OmniLM, Engine]:
    """Load a checkpoint for the engine `openvino` on the CPU, without the weights that the engine replaces.

    Args:
        checkpoint: see `omnikit.checkpoint.existing`.
        public_weights: see `omnikit.checkpoint.load`.
        options: further arguments of the engine's constructor.

    Returns:
        The model without its backbone's blocks and heads, and the engine that computes them.

    Raises:
        ValueError: see `open_engine` and `omnikit.checkpoint.load`.
    """
    module, folder = _openvino(), engine_folder(checkpoint)
    if not module.is_converted(folder, **options):
        module.convert(checkpoints.load(checkpoint, public_weights=public_weights), folder, **options)
    model = checkpoints.load(checkpoint, skeleton=True, public_weights=public_weights)
    return model, module.OpenVINOEngine(model, folder, **options)


def check_engine(name: str) -> None:
    """Check that an engine's name is known and that the engine can work on this machine.

    Raises:
        ValueError: an unknown name, or `compiled` without a C++ compiler.
    """
    if name not in (AUTO, *ENGINES):
        raise ValueError(f"engine {name!r}: unknown (choices: {', '.join((AUTO, *ENGINES))})")
    if name == COMPILED:
        _check_compiler()


def _fastest(model: OmniLM) -> str:
    """Return the name of the engine that `auto` chooses for a model.

    On a GPU, where the engine decides most of the speed, the choice is printed to stderr.
    """
    from omnikit.engines.static import unsupported_reason

    reason = unsupported_reason(model)
    if model.device.type == "cuda":
        print(f"engine: {STATIC}" if reason is None else f"engine: {TORCH} ({reason})", file=sys.stderr)
    return STATIC if reason is None else TORCH


def _check_compiler() -> None:
    """Check that a C++ compiler is installed; torch would report its absence at the first decode step, in many lines.

    Raises:
        ValueError: there is no compiler.
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
    """Return the folder in the user's cache (`XDG_CACHE_HOME`) for the graphs that engines convert a checkpoint to.

    Its name depends on the weights and the parts, so that a changed checkpoint has another folder.

    Args:
        checkpoint: see `omnikit.checkpoint.existing`.

    Raises:
        ValueError: the checkpoint has no weights.
    """
    file = checkpoints.weights_of(checkpoint).resolve()
    about = file.stat()
    parts = file.with_name(checkpoints.HPARAMS)
    key = hashlib.sha256(f"{file} {about.st_size} {about.st_mtime_ns}".encode())
    key.update(parts.read_bytes() if parts.is_file() else b"")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "omnikit" / "engines" / key.hexdigest()[:16]
