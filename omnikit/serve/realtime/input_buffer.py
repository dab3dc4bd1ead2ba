"""The input audio buffer of a session: the client's audio that is not yet part of an item, on the session's clock."""

from __future__ import annotations

from collections import deque

import numpy as np

from omnikit.serve.realtime.actions import RATE

_FULL_SCALE = 32768
MS = RATE // 1000
"""Number of samples in a millisecond."""


def stored(samples: np.ndarray) -> np.ndarray:
    """Convert samples [n] (float32 in -1..1) to 16 bits, in which they are kept."""
    return np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def restored(samples: np.ndarray) -> np.ndarray:
    """Convert kept samples [n] (int16) back to float32 in -1..1."""
    return samples.astype(np.float32) / _FULL_SCALE


class InputBuffer:
    """Samples at `RATE`, each with its number since the session began."""

    def __init__(self) -> None:
        self._parts: deque[np.ndarray] = deque()
        self.begin = 0
        """Number of the first sample that is kept."""
        self.end = 0
        """Number of samples that were appended since the session began."""

    def __len__(self) -> int:
        return self.end - self.begin

    def append(self, samples: np.ndarray) -> None:
        """Append samples [n] (float32)."""
        if len(samples):
            self._parts.append(stored(samples))
            self.end += len(samples)

    def take(self, begin: int, end: int) -> np.ndarray:
        """Return the samples [n] (int16) with these numbers, those that are kept of them, and drop all up to `end`."""
        self.drop(begin)
        if not (end := min(end, self.end)) > self.begin:
            return np.zeros(0, np.int16)
        found = np.concatenate(self._parts)[: end - self.begin]
        self.drop(end)
        return found

    def drop(self, before: int) -> None:
        """Drop the samples with smaller numbers."""
        before = min(before, self.end)
        while self._parts and self.begin + len(self._parts[0]) <= before:
            self.begin += len(self._parts.popleft())
        if before > self.begin:
            self._parts[0] = self._parts[0][before - self.begin :].copy()
            self.begin = before
