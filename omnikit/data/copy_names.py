"""Names of augmented copies: those of their entry or dialog with an ending that numbers the copy, from 1."""

from __future__ import annotations

import re

MARK = "-copy"
"""Text that every name of a copy contains."""
_ENDING = re.compile(rf"{MARK}[0-9]+\Z")


def copy_name(origin: str, number: int) -> str:
    """Return the name of a copy of the entry or dialog called `origin`."""
    return f"{origin}{MARK}{number}"


def is_copy(name: str) -> bool:
    """Return whether a name is that of a copy."""
    return _ENDING.search(name) is not None


def origin_of(name: str) -> str:
    """Return the name of the entry or dialog that a copy was made of; any other name is returned unchanged."""
    return _ENDING.sub("", name)
