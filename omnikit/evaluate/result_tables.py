"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

MISSING = "-"


def percent(value: float | None) -> str:
    """A rate in percent with one decimal."""
    return MISSING if value is None else f"{value:.1f}"


def seconds(value: float | None) -> str:
    """A time or a ratio with two decimals."""
    return MISSING if value is None else f"{value:.2f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """First column to the left, all others (figures) to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))
