"""Measures the share of time for which a loop waits for its next batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Waiting:
    """A clock of the seconds spent in `with waiting.timed()` blocks, and their share of all time since a reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start measuring anew."""
        self.seconds, self._began = 0.0, time.perf_counter()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of a `with` block as time of waiting."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began

    def share(self) -> float:
        """Return the share (0 to 1) of the time since the last reset that was spent waiting."""
        return self.seconds / max(time.perf_counter() - self._began, 1e-9)
