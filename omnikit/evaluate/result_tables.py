"""Results as JSON and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnikit.files import write_text

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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is whole or absent, see `omnikit.files.whole_file`."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_text(path, text, errors="backslashreplace")  # JSON's own escapes for file names that are not UTF-8
