"""Backbones that embed and do no more: an engine computes their blocks and heads, so these take no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch

DTYPE = torch.bfloat16
"""Of the embeddings: they are most of what is left, and checkpoints are stored in it."""
_WANTED = ContextVar("skeletons", default=False)


@contextmanager
def skeletons() -> Iterator[None]:
    """Blocks and heads of the backbones that are built meanwhile are on the meta device."""
    before = _WANTED.set(True)
    try:
        yield
    finally:
        _WANTED.reset(before)


def wanted() -> bool:
    """Whether `skeletons` is in effect."""
    return _WANTED.get()


def device() -> AbstractContextManager:
    """Where blocks and heads are built now."""
    return torch.device("meta") if wanted() else nullcontext()
