"""How long the tests with random calls and messages run: seconds each, or minutes with `make fuzz`."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

SECONDS = float(os.environ.get("OMNIKIT_FUZZ_SECONDS", "0"))
"""Time that each of the tests may take; 0 = its own short one."""
SEED = int(os.environ.get("OMNIKIT_FUZZ_SEED", "19"))
"""Seed of everything random; a failure is repeated by the same seed."""


def rounds(seconds: float) -> Iterator[random.Random]:
    """Yield a random generator for each round until the time is over, at least one; the n-th is always the same.

    Args:
        seconds: time unless the environment sets another.
    """
    end, number = time.monotonic() + (SECONDS or seconds), 0
    while not number or time.monotonic() < end:
        yield random.Random(f"{SEED} {number}")
        number += 1
