"""Format results as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

MISSING = "-"


def percent(value: float | None) -> str:
    """Format a percentage with one decimal; None as `-`."""
    return MISSING if value is None else f"{value:.1f}"


def seconds(value: float | None) -> str:
    """Format a time in seconds, or a ratio, with two decimals; None as `-`."""
    return MISSING if value is None else f"{value:.2f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is left-aligned; the others, which hold figures, are right-aligned."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))
