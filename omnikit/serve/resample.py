"""Resampling of audio that arrives in chunks, with a delay of a few milliseconds.

`soxr.ResampleStream` resamples streams as well, but holds 36 ms (24 to 16 kHz) to 73 ms (8 to 24 kHz) back at its
default quality, which people in a conversation wait for.
"""

from __future__ import annotations

import math

import numpy as np

_ZEROS = 32  # zero crossings of the sinc on either side: flat to 0.86 of the lower Nyquist frequency, -70 dB beyond it
_CUTOFF = 0.93  # of the lower Nyquist frequency
_BETA = 7.0
_BLOCK = 4096


class Resampler:
    """A resampler with a state, whose outputs do not depend on how its input is divided into chunks.

    It filters with a windowed sinc. Output sample k stands for the time k / `rate_out`, so that nothing is shifted;
    what depends on samples that have not come yet is returned later.

    Args:
        rate_in, rate_out: sample rates in Hz.
    """

    def __init__(self, rate_in: int, rate_out: int):
        common = math.gcd(rate_in, rate_out)
        self.up, self.down = rate_out // common, rate_in // common
        self.taps = filters(self.up, self.down)
        self.half = (len(self.taps) - self.down) // 2
        self._restart()

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Resample further samples [n] and return those that are final now [m] (float32)."""
        if self.up == self.down:
            return np.asarray(samples, np.float32)
        self.taken += len(samples)
        return self._filter(np.asarray(samples, np.float64))

    def finish(self) -> np.ndarray:
        """Return the remaining samples [m] (float32), as if silence followed; the next push begins a new stream."""
        wanted = -(-self.taken * self.up // self.down) - self.given
        rest = self._filter(np.zeros(self.half + self.down))[:wanted]
        self._restart()
        return rest

    def _restart(self) -> None:
        self.waiting = np.zeros(self.half)
        self.taken = self.given = 0

    def _filter(self, samples: np.ndarray) -> np.ndarray:
        self.waiting = np.concatenate([self.waiting, samples])
        groups = max(0, (len(self.waiting) - 2 * self.half) // self.down)
        if not groups:
            return np.zeros(0, np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(self.waiting, len(self.taps))[:: self.down][:groups]
        self.waiting = self.waiting[groups * self.down :]
        self.given += groups * self.up
        # copied, since BLAS takes no overlapping rows, and in blocks, since the copy is large
        blocks = [np.ascontiguousarray(windows[at : at + _BLOCK]) @ self.taps for at in range(0, groups, _BLOCK)]
        # float64 hides that the order of additions depends on the number of rows
        return np.concatenate(blocks).astype(np.float32).reshape(-1)


def filters(up: int, down: int) -> np.ndarray:
    """Return the weights [W, up] by which W neighbouring input samples make the `up` outputs for `down` inputs.

    Each output's weights sum to 1. W - `down` is the number of further inputs that they reach, half on either side.
    """
    if up == down:
        return np.ones((1, 1))
    cutoff = _CUTOFF * min(1.0, up / down)
    half = math.ceil(_ZEROS / cutoff)
    distance = np.arange(-half, half + down)[:, None] - np.arange(up)[None, :] * down / up
    inside = np.clip(1 - (distance / half) ** 2, 0, None)
    window = np.where(np.abs(distance) <= half, np.i0(_BETA * np.sqrt(inside)), 0.0)
    weights = np.sinc(cutoff * distance) * window
    return weights / weights.sum(0)
