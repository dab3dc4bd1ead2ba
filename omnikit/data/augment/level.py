"""Loudness of recordings: gain, and clipping of loud samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omnikit.data.augment.effect import Effect, within_full_scale
from omnikit.option_ranges import Range


class Level(Effect):
    """Amplification or attenuation; a waveform that would exceed -1..1 is only amplified up to that range.

    Args:
        probability: share of the recordings that are changed.
        gain_db: range of the gain in dB.
    """

    def __init__(self, *, probability: float, gain_db: Sequence[float]):
        super().__init__(probability)
        self.gain_db = self._between("gain_db", gain_db, Range(-100, 100))

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"gain_db": rng.uniform(*self.gain_db)}

    def apply(self, wav: np.ndarray, rate: int, rng: np.random.Generator, *, gain_db: float) -> np.ndarray:
        return within_full_scale(wav * 10 ** (gain_db / 20))


class Clipping(Effect):
    """Limiting of the loudest samples to one value, as of a microphone amplifier that is overdriven.

    Args:
        probability: share of the recordings that are changed.
        share: range of the share of a recording's samples that are limited, 0..1.
    """

    def __init__(self, *, probability: float, share: Sequence[float]):
        super().__init__(probability)
        self.share = self._between("share", share, Range(0, 1))

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"share": rng.uniform(*self.share)}

    def apply(self, wav: np.ndarray, rate: int, rng: np.random.Generator, *, share: float) -> np.ndarray:
        if not len(wav):
            return wav
        limit = np.quantile(np.abs(wav), 1 - share)
        return np.clip(wav, -limit, limit).astype(np.float32)
