"""Ranges of numbers and kinds of texts that options accept, checked where the option is defined.

This file imports nothing heavy.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LARGEST = 2**31 - 1
"""Largest whole number of an option without a smaller bound: libraries store such numbers in 32 bits."""
_EXACT = 2.0**53  # floats represent every whole number up to here


@dataclass(frozen=True)
class Range:
    """A range of numbers from `low` to `high`, both included; NaN and infinity are never in it.

    Args:
        low, high: the bounds.
        whole: accept whole numbers only (`2.0` is not one, see `as_whole`), up to `LARGEST` if `high` is infinite.
        above: exclude `low` itself.
        null: accept None, too.
    """

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    null: bool = False

    def problem(self, value: Any) -> str:
        """Return the requirement on a value for an error message, such as "must be 1 or more"; empty if it is met."""
        if value is None and self.null:
            return ""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return self._kind("whole" if self.whole else "finite")
        if self.whole and not isinstance(value, int):
            return self._kind("whole")
        high = LARGEST if self.whole and math.isinf(self.high) else self.high
        if value > high:
            return f"must be at most {high:.15g}"
        return "" if value > self.low or (value == self.low and not self.above) else f"must be {self._bounds()}"

    def check(self, flag: str, value: Any) -> None:
        """Refuse a value that is not a number within this range.

        Raises:
            ValueError: the value is outside; the message names the flag, the value and the range.
        """
        if problem := self.problem(value):
            shown = f"{value:.15g}" if isinstance(value, float) and not self.whole else value
            raise ValueError(f"--{flag} {shown}: {problem}")

    def __call__(self, text: str) -> int | float:
        """Convert the text of a command-line argument to a number in the range, as argparse's `type` expects.

        Raises:
            argparse.ArgumentTypeError: the text is no number in the range.
        """
        try:
            value = whole_number(text) if self.whole else float(text)
        except ValueError:
            value = text
        if problem := self.problem(value):
            raise argparse.ArgumentTypeError(f"{text}: {problem}")
        return value

    def _kind(self, word: str) -> str:
        bounds = self._bounds()
        return f"must be a {word} number{f', {bounds}' if bounds else ''}"

    def _bounds(self) -> str:
        low, high = (f"{bound:.15g}" for bound in (self.low, self.high))
        words = "" if math.isinf(self.low) else f"above {low}" if self.above else f"{low} or more"
        ends = [words, *([] if math.isinf(self.high) else [f"at most {high}"])]
        return " and ".join(filter(None, ends)) + (", or null" if self.null else "")


@dataclass(frozen=True)
class Text:
    """A constraint that accepts texts that are not empty, such as a path or a name; with `null`, None, too."""

    null: bool = False

    def check(self, flag: str, value: Any) -> None:
        """Refuse a value that is not a text.

        Raises:
            ValueError: the message names the flag and the value.
        """
        if not (isinstance(value, str) and value) and not (value is None and self.null):
            raise ValueError(f"--{flag} {value}: must be a text{' or null' if self.null else ''}; {quoted(value)}")


@dataclass(frozen=True)
class Regex(Text):
    """A constraint on an option's value: a string that is a valid regular expression, or empty."""

    def check(self, flag: str, value: Any) -> None:
        """Refuse a text that is not a regular expression.

        Raises:
            ValueError: the message names the flag, the value and the error in it.
        """
        if value == "":
            return
        super().check(flag, value)
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"--{flag} {value}: is no regular expression ({error})") from None


@dataclass(frozen=True)
class Items:
    """A constraint that accepts lists of mappings with the keys `needed`, such as `[{name: a, ids: ^a}]`."""

    needed: Mapping[str, Text]

    def check(self, flag: str, value: Any) -> None:
        """Refuse a value that is not a list of mappings with the needed keys.

        Raises:
            ValueError: the message names the flag and the item.
        """
        form = ", ".join(f"{name}: .." for name in self.needed)
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, Mapping) or not self.needed.keys() <= item.keys():
                raise ValueError(f"--{flag} {item}: must be a list of [{{{form}}}]")
            for name, allowed in self.needed.items():
                allowed.check(f"{flag}.{name}", item[name])


@dataclass(frozen=True)
class Each:
    """A constraint that accepts a list of numbers within a range, or None."""

    numbers: Range

    def check(self, flag: str, value: Any) -> None:
        """Refuse a value that is neither None nor a list of numbers within the range.

        Raises:
            ValueError: the message names the flag and the value, or the number outside.
        """
        if value is not None and not isinstance(value, list):
            raise ValueError(f"--{flag} {value}: must be a list, such as [{value}]")
        for number in value or ():
            self.numbers.check(flag, number)


@dataclass(frozen=True)
class OneOf:
    """A constraint that accepts one of a few values, such as true and false."""

    choices: tuple[Any, ...]

    def check(self, flag: str, value: Any) -> None:
        """Refuse a value that is not among the choices.

        Raises:
            ValueError: the message names the flag, the value and the choices.
        """
        if not any(value is each or (isinstance(each, str) and value == each) for each in self.choices):
            words = ", ".join("null" if each is None else str(each).lower() for each in self.choices)
            raise ValueError(f"--{flag} {value}: no such choice (choices: {words})")


def as_whole(value: Any) -> Any:
    """Return a float without a fraction, such as `1e3`, as an int, and anything else unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT else value


def whole_number(text: str) -> int:
    """Return the whole number that a text such as `1000` or `1e3` represents.

    Raises:
        ValueError: the text represents none.
    """
    try:
        return int(text)
    except ValueError:
        value = as_whole(float(text))
    if not isinstance(value, int):
        raise ValueError(f"{text} is no whole number")
    return value


def quoted(value: Any) -> str:
    """Return the hint for users on how to type a value so that YAML reads it as a text."""
    return f"quote it if it is meant as one: \"'{value}'\""


PATH, PATH_OR_NONE = Text(), Text(null=True)
COUNT = Range(1, whole=True)
COUNT_OR_NONE = Range(1, whole=True, null=True)
FROM_ZERO = Range(0, whole=True)
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, above=True)
THREADS = Range(1, 1024, whole=True)
"""Range of the number of threads or processes that one machine can start."""
TRUE_OR_FALSE = OneOf((True, False))
SEED = Range(0, 2**32 - 1, whole=True)
"""Range of seeds: numpy accepts no others."""


def check_ranges(
    tree: Mapping[str, Any], ranges: Mapping[str, Range | Text | Items | OneOf | Each], prefix: str = ""
) -> None:
    """Check the values of a resolved recipe.

    Args:
        tree: nested mappings with plain values.
        ranges: dotted key -> constraint. A key that the tree lacks is ignored.
        prefix: text that stands before the keys in the message.

    Raises:
        ValueError: a value violates its constraint; the message names it as a flag.
    """
    for key, allowed in ranges.items():
        node: Any = tree
        *parents, last = key.split(".")
        for name in parents:
            node = node.get(name) if isinstance(node, Mapping) else None
        if isinstance(node, Mapping) and last in node:
            allowed.check(prefix + key, node[last])
