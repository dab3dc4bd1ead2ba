"""Limit of the recordings that a recipe encodes itself, in hours; `omnikit tokenize` encodes larger corpora."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from omnikit.data.manifest_reader import Recording

Item = TypeVar("Item")
SAMPLED = 200
"""Number of recordings of unknown length whose headers are read to estimate the length of all."""


class EncodingLimit:
    """Maximum hours of recordings that may be encoded, over all sources.

    Args:
        hours: the maximum; None = no limit.
        parts: flags of `omnikit tokenize` that name the system's codec and encoder.
    """

    def __init__(self, hours: float | None = None, parts: str = ""):
        self.hours, self.parts, self.taken = hours, parts, 0.0

    def take(
        self, source: str, manifest: object, seconds: Mapping[str, float | None], recordings: Sequence[Recording]
    ) -> None:
        """Count recordings that are to be encoded.

        Args:
            source: name of the source.
            manifest: path of its manifest.
            seconds: length of each recording by its key; None if it is not known.

        Raises:
            ValueError: they exceed the limit; the message names the command to run instead.
        """
        if self.hours is None:
            return
        self.taken += hours_of(recordings, seconds)
        if self.taken > self.hours:
            raise ValueError(
                f"sources.{source}: about {self.taken:.1f} hours of recordings are to be encoded, more than "
                f"--max_encode_hours {self.hours:g}; encode them once (torchrun uses several GPUs): omnikit tokenize "
                f"{manifest} --save_folder DIR{self.parts}, and name DIR as the manifest; or raise the limit"
            )


def hours_of(recordings: Sequence[Recording], seconds: Mapping[str, float | None]) -> float:
    """Return the total length of recordings in hours; unknown lengths are estimated from some of their headers."""
    known = sum(seconds[each.key] or 0.0 for each in recordings)
    return estimated_hours(known, [each for each in recordings if not seconds[each.key]], lambda each: each)


def estimated_hours(known: float, unknown: Sequence[Item], recording_of: Callable[[Item], Recording]) -> float:
    """Return the total length of recordings in hours, of which some lengths are unknown.

    Args:
        known: sum of the known lengths in seconds.
        unknown: what the recordings of unknown length are found by.
        recording_of: function that finds such a recording; it is called for some of them, whose headers are read.
    """
    some = random.Random(0).sample(unknown, min(SAMPLED, len(unknown)))
    found = [recording_of(each).check().seconds for each in some]
    return (known + len(unknown) * sum(found) / max(1, len(found))) / 3600
