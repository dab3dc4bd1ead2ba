"""The interface of effects: changes of training waveforms with random settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np

from omnikit.option_ranges import Range

_ACTIVE_DB = 40.0  # frames that are quieter than the loudest by more than this are pauses
_FRAME_SECONDS = 0.02

_importing = Lock()


def scipy_module(name: str) -> ModuleType:
    """Return a module of scipy, such as `signal`, which is imported by one thread at a time.

    Effects run in several threads, and scipy's first import fails with a circular import if two threads begin it.
    """
    with _importing:
        return import_module(f"scipy.{name}")


class Effect(ABC):
    """A change of waveforms, such as added noise, that is made to a share of the recordings with random settings.

    Settings, such as the size of a room, are drawn apart from the change itself, so that several recordings can be
    changed with equal settings.

    Args:
        probability: share of the recordings that are changed, 0..1.
    """

    key = ""
    """Usual key of the effect in a recipe, for error messages; "" = the name of the class in lower case."""

    def __init__(self, probability: float):
        Range(0, 1).check(self._flag("probability"), probability)
        self.probability = probability

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Return random settings, as keyword arguments of `apply`."""
        return {}

    @abstractmethod
    def apply(self, wav: np.ndarray, rate: int, rng: np.random.Generator, **settings: Any) -> np.ndarray:
        """Return the changed waveform [N'] (float32).

        Args:
            wav: waveform [N] (float32).
            rate: sample rate in Hz.
            rng: generator for randomness that is not part of the settings, such as the samples of noise.
            **settings: what `draw` returned.
        """

    def longest(self, samples: int, rate: int) -> int:
        """Return the largest length in samples that a recording of N samples can have after the change."""
        return samples

    def _between(self, name: str, values: Sequence[float], allowed: Range) -> tuple[float, float]:
        """Return the two ends of a range of settings after checking them.

        Raises:
            ValueError: they are not two numbers in the allowed range, the lower one first.
        """
        flag = self._flag(name)
        if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != 2:
            raise ValueError(f"--{flag} {values}: must be a range of two numbers, such as [1, 2]")
        for value in values:
            allowed.check(flag, value)
        if values[0] > values[1]:
            raise ValueError(f"--{flag} {list(values)}: must be a range, the lower number first")
        return float(values[0]), float(values[1])

    def _flag(self, name: str) -> str:
        return f"augment.{self.key or type(self).__name__.lower()}.{name}"


def speech_power(wav: np.ndarray, rate: int) -> float:
    """Return the mean power of a waveform [N] without its pauses, so that silence around speech does not count."""
    size = max(1, int(_FRAME_SECONDS * rate))
    if len(wav) < size:
        return float(np.mean(wav**2)) if len(wav) else 0.0
    powers = np.mean(wav[: len(wav) // size * size].reshape(-1, size) ** 2, axis=1)
    return float(powers[powers >= powers.max() * 10 ** (-_ACTIVE_DB / 10)].mean())


def of_length(wav: np.ndarray, samples: int) -> np.ndarray:
    """Return a waveform [N], cut or followed by silence to have N samples."""
    return np.pad(wav[:samples], (0, max(0, samples - len(wav))))


def within_full_scale(wav: np.ndarray) -> np.ndarray:
    """Return a waveform [N] (float32), scaled down to -1..1 if it exceeds that."""
    return (wav / max(1.0, float(np.abs(wav).max(initial=0.0)))).astype(np.float32)
