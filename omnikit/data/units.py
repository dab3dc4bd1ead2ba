"""Units of a manifest that are held out or limited as a whole: an entry or a dialog, with its augmented copies."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from omnikit.data.copy_names import is_copy, origin_of


@dataclass(frozen=True)
class Units:
    """The numbers of the units of a manifest's entries, from 0 on in the order of their first entries.

    Args:
        numbers: number of each entry's unit [entries].
        copies: mask [entries] of the copies whose unit also has the entry that they were made of.
        dialogs: whether an entry has a dialog.
    """

    numbers: np.ndarray
    copies: np.ndarray
    dialogs: bool

    @property
    def count(self) -> int:
        return int(self.numbers.max()) + 1

    def entries(self, chosen: Sequence[int], *, copies: bool) -> list[int]:
        """Return the sorted indices of the entries of some units, with or without the copies among them."""
        wanted = np.isin(self.numbers, chosen)
        return np.flatnonzero(wanted if copies else wanted & ~self.copies).tolist()


def units_of(dialogs: Sequence[str | int | None] | None, ids: Sequence[str] | None, entries: int) -> Units | None:
    """Return the units of a manifest's entries; None if each entry is one of its own.

    Args:
        dialogs: names of the entries' dialogs; "" or None for an entry without one; None = no entry has one.
        ids: ids of the entries; None = no entry is a copy.
        entries: number of entries.
    """
    if dialogs is not None and all(name in ("", None) for name in dialogs):
        dialogs = None
    copies = np.array([is_copy(name) for name in ids]) if ids is not None else np.zeros(entries, bool)
    if dialogs is None and not copies.any():
        return None
    keys: list[Hashable] = list(range(entries)) if ids is None else [origin_of(name) for name in ids]
    if dialogs is not None:
        names = enumerate(dialogs)
        keys = [keys[place] if name in ("", None) else (_origin(name, copies[place]),) for place, name in names]
    numbers: dict[Hashable, int] = {}
    found = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
    original = np.zeros(len(numbers), bool)
    original[found[~copies]] = True
    return Units(found, copies & original[found], dialogs is not None)


def _origin(dialog: str | int, copy: bool) -> str | int:
    return origin_of(dialog) if copy and isinstance(dialog, str) else dialog
