"""Compilation of transformer blocks by torch, which fuses the operations between the matrix products of a block."""

from __future__ import annotations

import importlib.util
import shutil
from functools import partial

import torch

from omnikit.model import OmniLM
from omnikit.train.transformer_blocks import in_training, transformer_blocks

GRAPHS = 32
"""Maximum number of graphs of the code of a block; torch computes further cases uncompiled."""
_COMPILERS = ("gcc", "cc", "clang")


def whether_to_compile(wanted: bool | None, device: torch.device) -> tuple[bool, str]:
    """Return whether to compile blocks on a device, and the reason in a few words for the log.

    Args:
        wanted: True or False; None = automatic, on a GPU if torch has what it needs to compile for it.
    """
    if wanted is not None:
        return wanted, "as the recipe says"
    if device.type != "cuda":
        return False, "automatic: only on a GPU"
    if importlib.util.find_spec("triton") is None:
        return False, "automatic: the Python package triton is not installed"
    if not any(map(shutil.which, _COMPILERS)):
        return False, f"automatic: no C compiler is installed ({', '.join(_COMPILERS)})"
    return True, "automatic"


def compile_blocks(model: OmniLM, *, static: bool = False, backend: str = "inductor") -> None:
    """Compile each transformer block of backbone and TTS adapter for training steps.

    Blocks of a class share their graphs. The numbers of sequences and steps of a batch are symbols in a graph, so that
    one graph serves batches of almost all shapes. Further graphs are compiled for frozen and for trainable blocks, for
    inputs with and without gradient, for a single sequence, and where two sizes are equal by chance. Validation and
    generation compute blocks uncompiled.

    Args:
        static: compile a graph for each shape of batch instead.
        backend: backend of `torch.compile`.
    """
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    compiled = {}
    for block in transformer_blocks(model):
        kind = type(block)
        if kind not in compiled:
            compiled[kind] = torch.compile(kind.forward, dynamic=not static, backend=backend)
        in_training(block, partial(compiled[kind], block))
