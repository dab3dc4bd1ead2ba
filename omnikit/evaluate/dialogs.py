"""Groups the entries of a manifest into dialogs, whose turns are asked one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from omnikit.data.first_turns import usual_first
from omnikit.data.manifest_reader import ManifestEntry
from omnikit.data.skipped import Skipped

NO_DIALOG, DUPLICATE, AFTER_GAP = "no dialog or turn", "duplicate turn", "after a missing turn"
"""Reasons for which an entry is not asked."""


@dataclass(frozen=True)
class Dialog:
    """The turns of a conversation in order, each with its question and reference answers."""

    name: str
    turns: tuple[ManifestEntry, ...]


def group_dialogs(entries: Sequence[ManifestEntry]) -> tuple[list[Dialog], Skipped]:
    """Group entries by dialog, in the order in which the dialogs begin, and count the entries that cannot be asked.

    A dialog ends before its first missing turn, because later questions may depend on it; `usual_first` says which
    number is that of a first turn. Of two entries for the same turn the first is used.
    """
    skipped, found = Skipped(), {}
    for entry in entries:
        if not entry.dialog or entry.turn is None:
            skipped.add(NO_DIALOG, entry.id)
        elif entry.turn in (turns := found.setdefault(entry.dialog, {})):
            skipped.add(DUPLICATE, entry.id)
        else:
            turns[entry.turn] = entry
    usual = usual_first([min(turns) for turns in found.values()]) if found else 0
    dialogs = []
    for name, turns in found.items():
        first = min(usual, *turns)
        gap = next(number for number in count(first) if number not in turns)
        for number in sorted(turns):
            if number > gap:
                skipped.add(AFTER_GAP, turns[number].id)
        if gap > first:
            dialogs.append(Dialog(name, tuple(turns[number] for number in range(first, gap))))
    return dialogs, skipped
