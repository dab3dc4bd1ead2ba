"""The number with which the turns of dialogs begin, which differs between corpora."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def usual_first(firsts: Sequence[int] | np.ndarray) -> int:
    """Return the most common of the lowest turn numbers of dialogs, the smallest of equally common ones.

    A dialog that begins at it or below is counted from its own first number. One that begins later lacks its first
    turn.

    Args:
        firsts: lowest turn number of each dialog, of at least one.
    """
    numbers, counts = np.unique(np.asarray(firsts), return_counts=True)
    return int(numbers[counts.argmax()])
