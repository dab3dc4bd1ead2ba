"""Backbones that are built for inference alone: those of Llama's kind are computed by `omnikit.llms.llama` then, and
transformers, which takes longer to import than torch, is not needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_WANTED = ContextVar("for_inference", default=False)


@contextmanager
def for_inference() -> Iterator[None]:
    """Build backbones of Llama's kind without transformers meanwhile; their weights have to be read from a file."""
    before = _WANTED.set(True)
    try:
        yield
    finally:
        _WANTED.reset(before)


def wanted() -> bool:
    """Return whether `for_inference` is in effect."""
    return _WANTED.get()
