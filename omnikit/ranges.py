"""Which numbers an option takes, checked where the option is defined; imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LARGEST = 2**31 - 1
"""The largest whole number where nothing smaller is named: libraries keep such numbers in 32 bits."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; neither NaN nor infinity is ever one of them.

    Args:
        low, high: the bounds, both inside.
        whole: whole numbers only (`2.0` is not one).
        above: `low` itself is outside.
        null: None is allowed, too.
    """

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    null: bool = False

    def problem(self, value: Any) -> str:
        """Say what a value must be, such as "must be 1 or more"; empty where it is in the range."""
        if value is None and self.null:
            return ""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"must be {'a whole number' if self.whole else 'a number'}, {self._bounds()}"
        if self.whole and not isinstance(value, int):
            return f"must be a whole number, {self._bounds()}"
        inside = self.low < value if self.above else self.low <= value
        return "" if inside and value <= self._high and math.isfinite(value) else f"must be {self._bounds()}"

    def check(self, flag: str, value: Any) -> None:
        """Refuse a value outside the range.

        Raises:
            ValueError: the message names the flag, the value and the range.
        """
        if problem := self.problem(value):
            shown = f"{value:.15g}" if isinstance(value, float) else value
            raise ValueError(f"--{flag} {shown}: {problem}")

    @property
    def _high(self) -> float:
        return min(self.high, LARGEST) if self.whole else self.high

    def _bounds(self) -> str:
        low, high = (f"{bound:.15g}" for bound in (self.low, self._high))
        if not math.isinf(self.high):
            words = f"{f'above {low}' if self.above else f'{low} or more'} and at most {high}"
        elif math.isinf(self.low):
            words = "finite"
        else:
            words = f"above {low}" if self.above else f"{low} or more"
        return words + (", or null" if self.null else "")


COUNT = Range(1, whole=True)
COUNT_OR_NONE = Range(1, whole=True, null=True)
FROM_ZERO = Range(0, whole=True)
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, above=True)
THREADS = Range(1, 1024, whole=True)
"""Threads or processes that one machine can start."""
SEED = Range(0, 2**32 - 1, whole=True)
"""numpy takes no other."""


def check_ranges(tree: Mapping[str, Any], ranges: Mapping[str, Range], prefix: str = "") -> None:
    """Check the numbers of a resolved recipe.

    Args:
        tree: nested mappings with plain values.
        ranges: dotted key -> range. A key that the tree lacks is not looked at.
        prefix: what stands before the keys in the message.

    Raises:
        ValueError: a value outside its range; the message names it as a flag.
    """
    for key, allowed in ranges.items():
        node: Any = tree
        *parents, last = key.split(".")
        for name in parents:
            node = node.get(name) if isinstance(node, Mapping) else None
        if isinstance(node, Mapping) and last in node:
            allowed.check(prefix + key, node[last])
