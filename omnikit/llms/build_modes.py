"""Ways in which backbones are built for inference, each in effect within a `with` statement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch

SKELETON_DTYPE = torch.bfloat16
"""Type of a skeleton's embeddings: they are most of what is left, and checkpoints are stored in it."""


class Mode:
    """A way of building backbones: `with mode():` puts it into effect, `bool(mode)` tells whether it is."""

    def __init__(self, name: str):
        self._active = ContextVar(name, default=False)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        before = self._active.set(True)
        try:
            yield
        finally:
            self._active.reset(before)

    def __bool__(self) -> bool:
        return self._active.get()


for_inference = Mode("for_inference")
"""Backbones of Llama's kind are computed by `omnikit.llms.llama`, so that transformers, which takes longer to import
than torch, is not needed; their weights have to be read from a file."""
skeletons = Mode("skeletons")
"""Blocks and heads are built on the meta device: an engine computes them, so they take no memory."""


def blocks_device() -> AbstractContextManager:
    """Return a context in which blocks and heads are built on the device that the modes want."""
    return torch.device("meta") if skeletons else nullcontext()
