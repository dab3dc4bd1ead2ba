"""Length of recordings: faster or slower speech, and silence around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import soxr

from omnikit.data.augment.effect import Effect
from omnikit.option_ranges import Range


class SpeedChange(Effect):
    """Playing at another speed, which changes tempo, pitch and formants alike, as if another speaker spoke.

    Args:
        probability: share of the recordings that are changed.
        factor: range of the speed; 2 = twice as fast and half as long.
    """

    key = "speed"

    def __init__(self, *, probability: float, factor: Sequence[float]):
        super().__init__(probability)
        self.factor = self._between("factor", factor, Range(0.1, 10))

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"factor": rng.uniform(*self.factor)}

    def apply(self, wav: np.ndarray, rate: int, rng: np.random.Generator, *, factor: float) -> np.ndarray:
        return soxr.resample(wav, rate * factor, rate).astype(np.float32)

    def longest(self, samples: int, rate: int) -> int:
        return max(samples, math.ceil(samples / self.factor[0]) + 1)


class Silence(Effect):
    """Silence before and after the speech, each of a length of its own.

    Args:
        probability: share of the recordings that are changed.
        seconds: range of the length of each silence.
    """

    def __init__(self, *, probability: float, seconds: Sequence[float]):
        super().__init__(probability)
        self.seconds = self._between("seconds", seconds, Range(0, 60))

    def apply(self, wav: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
        return np.pad(wav, tuple((rng.uniform(*self.seconds, size=2) * rate).astype(int).tolist()))

    def longest(self, samples: int, rate: int) -> int:
        return samples + 2 * int(self.seconds[1] * rate)
