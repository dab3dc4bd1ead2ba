"""Figures of the judgements of an LLM: mean ratings and shares of answers that it calls correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from omnikit.evaluate.suites.suite import Metric, share


def mean_rating(name: str, ratings: Sequence[float | None]) -> Metric:
    """Return the mean of the ratings; None is a judgement without a rating, which is left out and noted."""
    found = [rating for rating in ratings if rating is not None]
    note = _without(len(ratings) - len(found), "have no rating and are left out")
    if not found:
        return Metric(name, None, len(ratings), f"open: {note}" if note else "open: no question was answered")
    return Metric(name, sum(found) / len(found), len(ratings), note)


def share_correct(name: str, verdicts: Sequence[bool | None], *, left_out: bool) -> Metric:
    """Return the percentage of answers that are correct.

    Args:
        name: name of the metric.
        verdicts: verdict on each answer; None is a judgement that is neither yes nor no.
        left_out: whether such judgements are left out; otherwise their answers count as wrong.
    """
    unclear = sum(verdict is None for verdict in verdicts)
    note = _without(unclear, "have no verdict and " + ("are left out" if left_out else "count as wrong"))
    found = share(name, verdicts.count(True), len(verdicts) - (unclear if left_out else 0), note)
    return replace(found, count=len(verdicts))  # as for ratings, so that figures of all tasks can be compared


def _without(count: int, words: str) -> str | None:
    return f"{count} judgements {words}" if count else None
