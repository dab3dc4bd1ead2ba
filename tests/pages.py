"""Functions that read the pages of the documentation: their text, and the files and shell commands that they show."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.M | re.S)
SNIPPET = re.compile(r'^--8<-- "([^"]+)"\n', re.M)


@dataclass(frozen=True)
class Block:
    """A fenced code block on a page of the documentation."""

    language: str
    title: str
    """Name of the file that the fenced code block shows; empty if the block is no file."""
    text: str


def page(name: str) -> str:
    """Return the text of a Markdown page in docs/."""
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[Block]:
    """Return the fenced code blocks of a documentation page in order, including files that the page embeds."""
    return [Block(language, title, _included(code)) for language, title, code in FENCE.findall(page(name))]


def commands(name: str) -> list[str]:
    """Return the command lines in the shell blocks of a documentation page."""
    return [line for block in blocks(name) if block.language == "sh" for line in block.text.splitlines()]


def write_files(name: str, folder: Path) -> list[str]:
    """Write the files that a documentation page shows to a folder, and return their names."""
    files = [block for block in blocks(name) if block.title]
    for block in files:
        (folder / block.title).write_text(block.text, encoding="utf-8")
    return [block.title for block in files]


def _included(code: str) -> str:
    return SNIPPET.sub(lambda line: (ROOT / line[1]).read_text(encoding="utf-8"), code)
