"""Table of all training samples of a recipe: origin, length and number of labels of each, without the samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SampleTable:
    """Origin, length and labels of N training samples, as one array [N] each, which may be memory-mapped."""

    sources: np.ndarray
    """Index of the source of each sample in the recipe's `sources`."""
    entries: np.ndarray
    """Index of the manifest entry of each sample in its source."""
    tasks: np.ndarray
    """Number of the task of each sample, see `omnikit.tasks.TASK_NAMES`."""
    lengths: np.ndarray
    """Number of steps of each sample."""
    text_labels: np.ndarray
    """Number of labels of each sample in the text stream."""
    audio_labels: np.ndarray
    """Number of labels of each sample in each of its audio streams."""

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, kept: np.ndarray) -> SampleTable:
        """Return the table of some of the samples, chosen by a mask [N] or by their indices."""
        return SampleTable(*(column[kept] for column in vars(self).values()))


def for_each(count: Callable[[int], int], values: np.ndarray) -> np.ndarray:
    """Return the results of a function for each value of an array, calling it once for equal values."""
    distinct, each = np.unique(values, return_inverse=True)
    return np.array([count(int(value)) for value in distinct], np.int32)[each]
