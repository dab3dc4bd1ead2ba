"""Test the ranges of numbers and the kinds of text that options accept."""

from __future__ import annotations

import argparse
import math

import pytest

from omnikit.option_ranges import COUNT, FROM_ZERO, PATH, PATH_OR_NONE, SEED, Items, Range, Regex, check_ranges

SHARE = Range(0, 1, above=True, null=True)


@pytest.mark.parametrize(
    ("allowed", "value", "problem"),
    [
        (COUNT, 1, ""),
        (COUNT, 0, "must be 1 or more"),
        (COUNT, 1.5, "must be a whole number, 1 or more"),
        (COUNT, True, "must be a whole number, 1 or more"),
        (COUNT, "3", "must be a whole number, 1 or more"),
        (COUNT, None, "must be a whole number, 1 or more"),
        (COUNT, 2**31, "must be at most 2147483647"),
        (COUNT, math.nan, "must be a whole number, 1 or more"),
        (SEED, 2**32 - 1, ""),
        (SEED, 2**32, "must be at most 4294967295"),
        (SEED, -1, "must be 0 or more and at most 4294967295"),
        (SHARE, None, ""),
        (SHARE, 1, ""),
        (SHARE, 0, "must be above 0 and at most 1, or null"),
        (SHARE, 1.01, "must be at most 1"),
        (SHARE, math.nan, "must be a finite number, above 0 and at most 1, or null"),
        (Range(0), math.inf, "must be a finite number, 0 or more"),
        (Range(), -3.5, ""),
    ],
)
def test_a_value_outside_is_told_what_it_must_be(allowed, value, problem):
    assert allowed.problem(value) == problem


def test_messages_name_flag_and_value():
    for allowed, value, message in (
        (FROM_ZERO, -5, "--a.b -5: must be 0 or more"),
        (PATH, 5, "--a.b 5: must be a text; quote it"),
        (PATH, None, "--a.b None: must be a text"),
        (PATH_OR_NONE, "", "--a.b : must be a text or null"),
        (Regex(), "(", r"--a.b \(: is no regular expression \(missing \)"),
        (Items({"name": PATH}), [5], r"--a.b 5: must be a list of \[{name: ..}\]"),
        (Items({"name": PATH}), [{"name": 5}], "--a.b.name 5: must be a text"),
    ):
        with pytest.raises(ValueError, match=message):
            check_ranges({"a": {"b": value}}, {"a.b": allowed})
    check_ranges({"a": 3}, {"a.b": COUNT, "c": COUNT})


def test_arguments_of_scripts_are_converted():
    assert COUNT("3") == 3 and Range(0)("0.5") == 0.5
    assert COUNT("1e3") == 1000 and isinstance(COUNT("1e3"), int)
    for text in ("0", "1.5", "x", "nan"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"^{text}: must be"):
            COUNT(text)
