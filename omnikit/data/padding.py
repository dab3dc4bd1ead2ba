"""Multiples to which the sizes of a batch are padded."""

from __future__ import annotations

import numpy as np

STEPS, FRAMES = 8, 32
"""Multiples to which the length of a batch is padded: in steps of sequences, and in frames of features.

Few, recurring shapes are much faster on a CPU: oneDNN compiles a kernel for each shape, and memory fragments less.
"""


def rounded(length: int | np.ndarray, multiple: int) -> int | np.ndarray:
    """Return a length, or each length of an array, rounded up to a multiple."""
    return -(-length // multiple) * multiple
