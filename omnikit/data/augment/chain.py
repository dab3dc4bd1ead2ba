"""A list of effects that are applied to training waveforms one after another, with seeds that make it reproducible."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnikit.data.augment.effect import Effect

Settings = dict[str, dict[str, Any]]
"""Mapping from the names of the effects that are applied to their settings."""


def any_length(samples: int) -> bool:
    """Return True: an encoder takes recordings of any length."""
    return True


class Augment:
    """Effects that change training waveforms at random, in the order in which they are given.

    Args:
        **effects: the effects by names of your choice; None removes one that a file defines.
    """

    def __init__(self, **effects: Effect | None):
        for name, effect in effects.items():
            if not (effect is None or isinstance(effect, Effect)):
                raise ValueError(f"--augment.{name} {effect}: is no effect, such as !new:omnikit.data.augment.Noise")
        self.effects = {name: effect for name, effect in effects.items() if effect is not None}

    def draw(self, rng: np.random.Generator) -> Settings:
        """Return which effects are applied to a recording, with random settings.

        Each effect takes as many random numbers whether it is applied or not, so that another probability changes
        nothing about the other effects.
        """
        settings = {}
        for name, effect in self.effects.items():
            applied, found = rng.random() < effect.probability, effect.draw(rng)
            if applied:
                settings[name] = found
        return settings

    def __call__(
        self,
        wav: np.ndarray,
        rate: int,
        rng: np.random.Generator,
        settings: Settings | None = None,
        accepts: Callable[[int], bool] = any_length,
    ) -> np.ndarray:
        """Return a changed copy [N'] (float32) of a waveform [N].

        Args:
            rate: sample rate in Hz.
            rng: random generator.
            settings: what `draw` returned; None = drawn here.
            accepts: function that says whether a number of samples is a length that the encoder takes. An effect that
                would make another length of it is left out.
        """
        wav = wav.astype(np.float32)
        for name, found in (self.draw(rng) if settings is None else settings).items():
            changed = self.effects[name].apply(wav, rate, rng, **found)
            if len(changed) == len(wav) or accepts(len(changed)):
                wav = changed
        return wav

    def longest(self, samples: int, rate: int, accepts: Callable[[int], bool] = any_length) -> int:
        """Return the largest length in samples that a recording of N samples can have after all effects.

        Args:
            accepts: see `__call__`.
        """
        for effect in self.effects.values():
            samples = _largest_accepted(samples, effect.longest(samples, rate), accepts)
        return samples

    @property
    def fingerprint(self) -> str:
        """Hash of the effects and their ranges, which identifies what was augmented with them."""
        effects = self.effects.items()
        text = repr([(name, type(effect).__name__, sorted(vars(effect).items())) for name, effect in effects])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _largest_accepted(low: int, high: int, accepts: Callable[[int], bool]) -> int:
    """Return the largest length between `low` and `high` that is accepted, or else `low`."""
    if accepts(high):
        return high
    while high - low > 1:  # accepted lengths have one upper limit
        middle = (low + high) // 2
        low, high = (middle, high) if accepts(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class SeededAugment:
    """Effects whose randomness depends on a seed, on the recording and on the number of its copy alone.

    The result therefore does not depend on worker processes, nor on the order of recordings. Turns of one conversation
    share the settings of their effects: room, line, level and speed.
    """

    augment: Augment
    seed: int = 0

    def __call__(
        self,
        wav: np.ndarray,
        rate: int,
        recording: str,
        copy: int,
        *,
        dialog: str = "",
        accepts: Callable[[int], bool] = any_length,
    ) -> np.ndarray:
        """Return an augmented copy [N'] (float32) of a waveform [N].

        Args:
            rate: sample rate in Hz.
            recording: name that identifies the recording, such as the id of its manifest entry.
            copy: number of the copy.
            dialog: name of the conversation whose recordings share settings; "" = none.
            accepts: see `Augment.__call__`.
        """
        settings = self.augment.draw(_generator("settings", self.seed, copy, bool(dialog), dialog or recording))
        return self.augment(wav, rate, _generator("samples", self.seed, copy, recording), settings, accepts)


def _generator(*keys: object) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(repr(keys).encode(), digest_size=16).digest()))
