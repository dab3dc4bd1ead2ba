"""Counts the dialogs of a prepared split that have missing or duplicate turns, over all of its shards.

The turns of a dialog may be in different shards, so that no shard alone shows whether a dialog is complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omnikit.data.first_turns import usual_first
from omnikit.data.skipped import Item, Skipped

MISSING, DUPLICATE = "dialogs with missing turns", "dialogs with duplicate turns"
"""Notes (keys of `omnikit.data.skipped.NOTES`) that count dialogs."""
FIELDS = ("dialog", "turn")


class SeenTurns:
    """The turns of a split that have been met so far, by which duplicates are found."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()
        self.duplicates: dict[str, None] = {}

    def is_duplicate(self, item: Item) -> bool:
        """Record the turn of a manifest item, and return whether an earlier item is the same turn of its dialog."""
        if item.get("dialog") is None:
            return False
        turn = (item["dialog"], item["turn"])
        if turn in self.seen:
            self.duplicates[item["dialog"]] = None
            return True
        self.seen.add(turn)
        return False

    def take_duplicates(self) -> list[str]:
        """Return the dialogs of which a turn came twice since the last call, each once."""
        found, self.duplicates = list(self.duplicates), {}
        return found

    def read(self, shard: Path) -> None:
        """Record the turns of a shard that was written earlier."""
        dialogs, turns = (column.to_pylist() for column in pq.read_table(shard, columns=list(FIELDS)).columns)
        self.seen.update(pair for pair in zip(dialogs, turns, strict=True) if pair[0] is not None)


def notes_on_dialogs(shards: Sequence[Path], duplicates: Iterable[str]) -> Skipped:
    """Count the dialogs with missing turns and those with duplicate turns, each dialog once.

    A dialog lacks turns if their numbers are not consecutive, or if its first number is above `usual_first`.

    Args:
        shards: all shards of a split.
        duplicates: dialogs that have a turn twice; a dialog may be named more than once.
    """
    notes = Skipped()
    found = pa.concat_tables(pq.read_table(shard, columns=list(FIELDS)) for shard in shards).drop_null()
    statistics = [("turn", name) for name in ("min", "max", "count")]
    counted = found.group_by("dialog", use_threads=False).aggregate(statistics)
    if len(counted):
        first, last, number = (counted[f"turn_{name}"] for name in ("min", "max", "count"))
        gaps = pc.not_equal(pc.add(pc.subtract(last, first), 1), number)
        late = pc.greater(first, usual_first(first.to_numpy()))
        _add(notes, MISSING, counted.filter(pc.or_(gaps, late))["dialog"].to_pylist())
    _add(notes, DUPLICATE, list(dict.fromkeys(duplicates)))
    return notes


def _add(notes: Skipped, note: str, dialogs: Sequence[str]) -> None:
    if dialogs:
        notes.add(note, dialogs[0], len(dialogs))
