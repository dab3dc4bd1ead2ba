"""Features or codes of the recordings of a source's entries, found by the entry's index at every later start.

Looking up recordings in ledger and cache takes a minute per million. The result is therefore stored beside the index of
the source, and used again as long as each sound file has the size and the modification time that it had then.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from omnikit.data.array_cache import READER, StoredArrays
from omnikit.data.batched import in_batches
from omnikit.data.content_digest import THREADS, UNREADABLE, Stamp
from omnikit.data.encode_recordings import Encoded, report_skipped
from omnikit.data.live_features import LongestFrames, expected_frames
from omnikit.data.manifest_reader import ManifestEntry, Recording
from omnikit.data.skipped import Skipped
from omnikit.files import remove, whole_file
from omnikit.interfaces import AudioEncoder

FACTS = "facts.json"
"""Name of the file that completes a stored look-up, and without which all recordings are looked up again."""
NONE = -1
"""Number of frames of an entry without features or codes here."""
_STATS = 2048  # files per task of a thread


class EncodedEntries(StoredArrays):
    """Features or codes of the recordings of some entries of a source, read by the index of the entry.

    Args:
        folder: folder of the cache that holds the arrays.
        files: pairs of file name and dtype.
        table: for each entry its index and the place of its array (see `StoredArrays`) [arrays, 5], sorted by index.
        stored: file of `table` if it is memory-mapped.
    """

    def __init__(
        self, folder: Path, files: Sequence[tuple[str, str]], table: np.ndarray, stored: Path | None = None
    ) -> None:
        super().__init__(folder, files, table[:, 1:])
        self.entries, self.stored = table[:, 0], stored

    @classmethod
    def open(cls, folder: Path, files: Sequence[tuple[str, str]], stored: Path) -> EncodedEntries:
        """Memory-map the table in the file `stored`."""
        return cls(folder, files, np.load(stored, mmap_mode="r"), stored)

    def __reduce__(self) -> tuple:
        return EncodedEntries.open, (self.folder, self.files, self.stored)  # another process maps the file itself

    def frames(self, entries: int, axis: int) -> np.ndarray:
        """Return the length of each entry's array along an axis, `NONE` for an entry without an array [entries]."""
        found = np.full(entries, NONE, np.int64)
        found[self.entries] = self.places[:, 2 + axis]
        return found

    def __getitem__(self, entry: int) -> Tensor:
        """Return the features or codes [rows, columns] of an entry that has some here."""
        return self.read(int(np.searchsorted(self.entries, entry)))


@dataclass(frozen=True)
class Found:
    """The result of looking up the recordings of some entries, before it is stored."""

    folder: Path
    files: Sequence[tuple[str, str]]
    table: np.ndarray
    paths: Sequence[str]
    """Sound files on which the result depends."""
    stamps: Sequence[Stamp]
    """Size and modification time of each of them."""
    skipped: Skipped
    recordings: int
    lasting: bool = True


def look_up(
    folder: Path,
    entries: Sequence[ManifestEntry],
    wanted: np.ndarray,
    name: str,
    find: Callable[[list[ManifestEntry]], Found],
) -> EncodedEntries:
    """Return the features or codes of the recordings of some entries, from a stored look-up if nothing has changed.

    Args:
        folder: folder of the stored look-up, whose name depends on the entries and on what encodes them.
        wanted: sorted indices of the entries.
        name: name of the source and kind of the arrays, for the log.
        find: looks up the recordings of entries and encodes those that the cache lacks; its table refers to positions
            in the list of entries.
    """
    known = _unchanged(folder, len(wanted))
    if known is not None:
        report_skipped(name, known[1], known[2])
        return known[0]
    found = find([entries[int(entry)] for entry in wanted])
    table = found.table.reshape(-1, 5).astype(np.int64)
    table[:, 0] = wanted[table[:, 0]]
    return _stored(folder, table, found, len(wanted))


def found_by_key(encode: Callable[[list[Recording]], Encoded], recordings: list[Recording]) -> Found:
    """Encode recordings, some of which may have the same key, and return what was found for each."""
    encoded = encode(recordings)
    store, numbers = encoded.store, encoded.store.index
    held = [(place, numbers[each.key]) for place, each in enumerate(recordings) if each.key in numbers]
    places = np.array(held, np.int64).reshape(-1, 2)
    by_path = {each.path: encoded.stamps[each.key] for each in recordings if each.path is not None}
    return Found(
        store.folder, store.files, np.concatenate([places[:, :1], store.places[places[:, 1]]], axis=1),
        list(by_path), list(by_path.values()), encoded.skipped, len(encoded.stamps), encoded.lasting,
    )  # fmt: skip


def live_frames(
    folder: Path, entries: Sequence[ManifestEntry], wanted: np.ndarray, seconds: np.ndarray,
    encoder: AudioEncoder | LongestFrames, name: str,
) -> np.ndarray:  # fmt: skip
    """Return the number of frames that the training step will compute for each entry, `NONE` without any [entries].

    They are estimated from the recording's length; the header of a recording is read if the manifest does not say it.

    Args:
        folder: folder of the lengths that were read from headers, see `look_up`.
        wanted: sorted indices of the entries whose features the step computes.
        seconds: durations in the manifest, NaN or 0 where it does not say [entries].
    """
    frames, skipped, known = np.full(len(entries), NONE, np.int64), Skipped(), seconds[wanted] > 0
    samples, each = np.unique(np.round(seconds[wanted[known]] * encoder.sample_rate), return_inverse=True)
    frames[wanted[known]] = np.array([_frames_or_none(encoder, int(count)) for count in samples], np.int64)[each]
    for entry in wanted[known][frames[wanted[known]] == NONE].tolist():
        skipped.add("refused", entries[entry].id if not skipped else "")
    report_skipped(name, skipped, len(wanted))
    if not known.all():
        found = look_up(folder, entries, wanted[~known], name, partial(_checked, encoder, name, len(wanted)))
        frames[found.entries] = found.places[:, 2]
    return frames


def _frames_or_none(encoder: AudioEncoder | LongestFrames, samples: int) -> int:
    try:
        return encoder.num_frames(samples)
    except ValueError:
        return NONE


def _checked(encoder: AudioEncoder | LongestFrames, name: str, total: int, entries: list[ManifestEntry]) -> Found:
    """Read the lengths of recordings from their headers and return the expected numbers of frames.

    Args:
        name: name of the source, for the log.
        total: number of recordings of the source, also those of known length.
    """
    skipped, paths = Skipped(), [entry.a1.path for entry in entries if entry.a1.path is not None]
    stamps = stamps_of(paths)
    with ThreadPoolExecutor(THREADS) as pool:
        frames = list(pool.map(lambda entry: expected_frames(encoder, entry), entries))
    for entry, problem in zip(entries, frames, strict=True):
        if isinstance(problem, str):
            skipped.add(problem, entry.id)
    report_skipped(name, skipped, total)
    table = [(place, 0, 0, each, 0) for place, each in enumerate(frames) if not isinstance(each, str)]
    return Found(Path(), [("", "uint8")], np.array(table, np.int64), paths, stamps, skipped, total)


def stamps_of(paths: Iterable[str | bytes]) -> list[Stamp]:
    """Return size and modification time of files, `UNREADABLE` for one that cannot be accessed."""
    with ThreadPoolExecutor(THREADS) as pool:
        return [stamp for some in pool.map(_stamps, in_batches(paths, _STATS)) for stamp in some]


def _stamps(paths: list[str | bytes]) -> list[Stamp]:
    return [_stamp(path) for path in paths]


def _stamp(path: str | bytes) -> Stamp:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: the path holds a null character
        return UNREADABLE
    return found.st_size, found.st_mtime_ns


def _unchanged(folder: Path, wanted: int) -> tuple[EncodedEntries, Skipped, int] | None:
    """Return a stored look-up, what was skipped in it and its number of recordings; None if it is not valid any more.
    """
    facts = _facts(folder)
    if facts.get("reader") != READER or facts.get("wanted") != wanted or not facts["lasting"]:
        return None
    try:
        stamps = np.load(folder / f"{facts['name']}.stamps.npy")
        paths = (folder / f"{facts['name']}.paths").read_bytes().split(b"\0")[:-1]
        files = [tuple(pair) for pair in facts["files"]]
        found = EncodedEntries.open(Path(facts["folder"]), files, folder / f"{facts['name']}.npy")
    except FileNotFoundError:  # another process has just stored a newer one
        return None
    if not (facts["live"] or found.whole()) or stamps_of(paths) != [tuple(each) for each in stamps.tolist()]:
        return None
    skipped = Skipped()
    for reason, count in facts["skipped"].items():
        skipped.add(reason, facts["examples"][reason], count)
    return found, skipped, facts["recordings"]


def _stored(folder: Path, table: np.ndarray, found: Found, wanted: int) -> EncodedEntries:
    """Store a look-up under a new name, and then the facts that name it, so that it is complete or absent."""
    name, former = uuid.uuid4().hex, _facts(folder).get("name")
    with whole_file(folder / f"{name}.npy") as aside, aside.open("wb") as file:
        np.save(file, table)
    with whole_file(folder / f"{name}.stamps.npy") as aside, aside.open("wb") as file:
        np.save(file, np.array(found.stamps, np.int64).reshape(-1, 2))
    with whole_file(folder / f"{name}.paths") as aside:
        aside.write_bytes(b"".join(_as_bytes(path) + b"\0" for path in found.paths))
    facts = {
        "name": name, "reader": READER, "wanted": wanted, "lasting": found.lasting, "live": found.folder == Path(),
        "folder": str(found.folder), "files": found.files, "recordings": found.recordings,
        "skipped": dict(found.skipped.reasons), "examples": found.skipped.examples,
    }  # fmt: skip
    with whole_file(folder / FACTS, of_process=True) as aside:
        aside.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    for ending in (".npy", ".stamps.npy", ".paths"):
        if former is not None:
            remove(folder / f"{former}{ending}")
    return EncodedEntries.open(found.folder, found.files, folder / f"{name}.npy")


def _as_bytes(path: str) -> bytes:
    try:
        return os.fsencode(path)
    except UnicodeEncodeError:  # no file can have that name
        return path.encode("utf-8", "surrogatepass")


def _facts(folder: Path) -> dict[str, Any]:
    file = folder / FACTS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
