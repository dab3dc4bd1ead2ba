"""Estimates the size of shards before they are computed, and refuses a disk that is too small for them."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from omnikit.data.recording_check import check_recording
from omnikit.data.skipped import Item, Remark
from omnikit.prepare.shards import ManifestPart

SAMPLED = 200
"""Number of recordings that are looked at to estimate the lengths of those of unknown length."""
_PARTS = 8  # parts from which they are taken
_UNITS = {"TB": 1e12, "GB": 1e9, "MB": 1e6}


@dataclass(frozen=True)
class Computed:
    """A field that is computed from the recording of another one, and the bytes that it takes.

    Args:
        name, recording: the field, and the field of the recording.
        per_second: bytes per second of the recording.
        maker: field that names the codec or the encoder which computed the field, such as `codec`.
        made_by: value of `maker` with which an entry's stored value of the field is kept.
    """

    name: str
    recording: str
    per_second: float
    maker: str
    made_by: str

    def is_new(self, item: Item, names: Collection[str]) -> bool:
        """Return whether the field will be computed for an entry of a manifest with fields of these names."""
        return self.recording in item and not (self.name in names and item.get(self.maker) == self.made_by)


@dataclass(frozen=True)
class ExpectedSize:
    """The estimated size of shards that are missing.

    Args:
        size: number of bytes, without recordings of unknown length.
        estimated: number of recordings whose length was estimated from that of others.
        unknown: number of recordings of unknown length.
    """

    size: float = 0.0
    estimated: int = 0
    unknown: int = 0

    def check(self, folder: Path, processes: int = 1, *, announce: bool = True) -> None:
        """Announce the size, and refuse to write it if the disk has less space.

        Args:
            folder: folder of the shards, which need not exist.
            processes: number of processes that each write about as much to the same disk.
            announce: whether to print the size to the standard error stream.

        Raises:
            ValueError: the disk is too small; the message names the folder and both sizes.
        """
        need, place = processes * self.size, folder.absolute()
        while not place.exists():
            place = place.parent
        if not place.is_dir():  # a file is in the way, which is refused when the folder is made
            return
        free = shutil.disk_usage(place).free
        notes = f"; lengths of {processes * self.estimated} recordings are estimated" if self.estimated else ""
        notes += f"; without {processes * self.unknown} recordings of unknown length" if self.unknown else ""
        if need > free:
            words = f"about {in_words(need)} are to be written, but {in_words(free)} are free{notes}"
            raise ValueError(f"--save_folder {folder}: {words}; choose another disk, or --drop recordings")
        if announce:
            words = f"about {in_words(need)} will be written, {in_words(free)} are free{notes}"
            tqdm.write(f"{folder}: {words}", sys.stderr)


def in_words(size: float) -> str:
    """Return a number of bytes with three digits and a unit."""
    unit = next((name for name, one in _UNITS.items() if size >= one), "MB")
    return f"{size / _UNITS[unit]:.3g} {unit}"


def expected_size(
    parts: Sequence[ManifestPart], names: Collection[str], kept: Collection[str], computed: Sequence[Computed]
) -> ExpectedSize:
    """Estimate the size of shards from the durations of entries and the size of what is kept.

    Recordings whose length the manifest does not say are taken to be as long as some of them are on average.

    Args:
        parts: parts of the manifest whose shards are missing.
        names: names of the manifest's fields.
        kept: names of the fields that the shards have.
        computed: fields that are computed; a duration is that of the first recording among all fields.
    """
    size, unknown, first = 0.0, Counter(), "a1" if "a1" in names else "a2"
    for part in parts:
        new = set()
        for item in part.outline():
            for each in computed if not isinstance(item, Remark) else ():
                if each.is_new(item, names):
                    new.add(each.name)
                    seconds = item.get("duration") if each.recording == first else None
                    size += (seconds or 0.0) * each.per_second
                    unknown[each] += not seconds
        size += part.stored([name for name in kept if name in names and name not in new])
    lost = 0
    for each in [each for each, count in unknown.items() if count]:
        lengths = _lengths(parts, each.recording)
        lost += 0 if lengths else unknown[each]
        size += unknown[each] * each.per_second * sum(lengths) / max(1, len(lengths))
    return ExpectedSize(size, sum(unknown.values()) - lost, lost)


def _lengths(parts: Sequence[ManifestPart], name: str) -> list[float]:
    """Return the lengths in seconds of some recordings in a field, according to their headers."""
    some = parts[:: -(-len(parts) // _PARTS)]
    sources = [source for part in some for source in islice(_recordings(part, name), -(-SAMPLED // len(some)))]
    return [found.seconds for source in sources if not (found := check_recording(source)).problem]


def _recordings(part: ManifestPart, name: str) -> Iterator[str | bytes]:
    return (item[name] for item in part.items() if not isinstance(item, Remark) and name in item)
