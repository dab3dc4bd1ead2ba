"""Modes in which backbones are built for inference, each in effect within a `with` statement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch

SKELETON_DTYPE = torch.bfloat16
"""Type of the embeddings of a backbone built without blocks; checkpoints are stored in it."""


class Mode:
    """A mode of building backbones: `with mode():` puts it into effect, `bool(mode)` says whether it is in effect."""

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
"""Mode in which backbones of Llama's kind are computed by `omnikit.llms.llama`, without transformers.

transformers takes longer to import than torch. The weights have to be read from a file.
"""
skeletons = Mode("skeletons")
"""Mode in which blocks and heads are built on the meta device and take no memory, because an engine computes them."""


def blocks_device() -> AbstractContextManager:
    """Return a context that builds modules on the device that the modes in effect require for blocks and heads."""
    return torch.device("meta") if skeletons else nullcontext()
