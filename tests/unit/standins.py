"""Small stand-in classes for tests of how recipes build objects."""

from __future__ import annotations

from typing import Any

from torch import nn


class Thing:
    """A stand-in for a part of a system that stores the arguments that it was built with."""

    def __init__(self, *, size: int = 3, weights: str | None = None, inner: Any = None):
        self.size, self.weights, self.inner = size, weights, inner


class Joined(nn.Module):
    """A stand-in for a model that is built from two parts."""

    def __init__(self, *, codec: Any, encoder: Any):
        super().__init__()
        self.codec, self.encoder = codec, encoder
