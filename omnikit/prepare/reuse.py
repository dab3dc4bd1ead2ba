"""Reuses codes and features from the shard that a new one replaces, for recordings that have not changed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from omnikit.data.content_digest import THREADS, Content, digest_of
from omnikit.data.skipped import Item
from omnikit.prepare.shards import read_note

logger = logging.getLogger(__name__)
MADE_BY, RECORDINGS = "made_by", "recordings"


@dataclass(frozen=True)
class FormerShard:
    """A shard from an earlier run, with a digest of the recordings that each of its entries was computed from.

    Args:
        path: path of the shard.
        depends_on: digest of the parts and options that compute the fields.
        computed: names of the fields that are computed from recordings.
        digests: digest of the recordings by the id of the entry; empty if there is no such shard or if other parts or
            options computed it.
    """

    path: Path
    depends_on: str
    computed: tuple[str, ...]
    digests: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, depends_on: str, computed: tuple[str, ...]) -> FormerShard:
        """Return the earlier shard at `path` with the digests in its note; warn if an earlier version stored none."""
        note, depends_on = read_note(path), hashlib.sha256(depends_on.encode()).hexdigest()
        if computed and note and RECORDINGS not in note:
            _report_old(path.parent)
        usable = note.get(MADE_BY) == depends_on and path.exists()
        return cls(path, depends_on, computed, note[RECORDINGS] if usable else {})

    def new_note(self) -> dict[str, Any]:
        """Return a note for the new shard, without digests so far; {} if no field is computed from recordings."""
        return {MADE_BY: self.depends_on, RECORDINGS: {}} if self.computed else {}

    def fill(self, items: Sequence[Item], digests: Mapping[str, str]) -> None:
        """Copy the computed fields of this shard to items with the same id and unchanged recordings, in place.

        Args:
            digests: digest of each item's recordings by id.
        """
        same = {i["id"]: i for i in items if i["id"] in digests and self.digests.get(i["id"]) == digests[i["id"]]}
        if not same:
            return
        columns = [name for name in pq.read_schema(self.path).names if name in ("id", *self.computed)]
        for row in pq.read_table(self.path, columns=columns, filters=[("id", "in", list(same))]).to_pylist():
            item = same[row["id"]]
            item |= {name: value for name, value in row.items() if value is not None and name not in item}


def digest_recordings(items: Sequence[Item], reads: Callable[[Item], list[str]]) -> dict[str, str]:
    """Return a digest of the recordings that each item is computed from, by the item's id.

    Args:
        reads: function from an item to the names of the fields that hold these recordings.

    Returns:
        A mapping without the items that have no such recording or one that cannot be read.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda item: _digest(item, reads(item)), items)
        return {item["id"]: digest for item, digest in zip(items, found, strict=True) if digest is not None}


def _digest(item: Item, names: Sequence[str]) -> str | None:
    try:
        found = [name.encode() + _content(item[name]).digest() for name in names]
    except (OSError, ValueError):  # `ManifestTransform.rows` reports the recording
        return None
    return digest_of(b"".join(found)).hex() if found else None


def _content(recording: str | bytes) -> Content:
    return Content("", read=lambda: recording) if isinstance(recording, bytes) else Content.of_file(recording)


@cache
def _report_old(folder: Path) -> None:
    """Warn once about shards of an earlier version, whose notes have no digests of the recordings."""
    logger.warning("%s: shards of an earlier version, without digests of their recordings; computed again", folder)
