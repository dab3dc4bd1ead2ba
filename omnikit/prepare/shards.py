"""Writes manifest files that are whole or absent, with a note on their sources and on skipped items.

The note stands beside each file as `<name>.summary.json`. A complete file whose sources have not changed is not written
again, so a run that was killed resumes after its last complete file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from omnikit.data.content_digest import THREADS, Content, stamped
from omnikit.data.manifest_writer import ManifestWriter
from omnikit.data.skipped import NOTES, REASONS, Item, Remark, Skipped
from omnikit.errors import writing
from omnikit.files import write_json


@dataclass(frozen=True)
class ManifestPart:
    """The part of a split that becomes one manifest file: its sources and its items."""

    name: str
    """Name of the part, and of its file without the ending."""
    sources: Sequence[Path]
    """Files or folders that the part is read from; the part is written again when one has changed."""
    items: Callable[[], Iterable[Item | Remark]]
    """Function that returns the part's items or remarks, the same ones in the same order at each call."""
    rows: int | None = None
    """Number of items, for the progress bar; None = unknown."""
    recordings: Callable[[], Iterable[str]] = tuple
    """Function that returns the paths of the recordings that the items name and that are not among the sources.

    The part is written again when the size or modification time of one changes.
    """
    outline: Callable[[], Iterable[Item | Remark]] = tuple
    """Function that returns the items with little more than their durations and makers; recordings may be empty."""
    stored: Callable[[Collection[str]], float] = lambda fields: 0.0
    """Function that returns the number of bytes that some fields of the part take in its sources."""


@dataclass
class Summary:
    """Statistics of the manifest of a split or of a part: entries, hours, speakers, and skipped items by reason."""

    split: str
    rows: int = 0
    hours: float = 0.0
    speakers: set[str] = field(default_factory=set)
    skipped: Skipped = field(default_factory=Skipped)
    notes: Skipped = field(default_factory=Skipped)

    def add_row(self, row: Item) -> None:
        self.rows += 1
        self.hours += (row.get("duration") or 0.0) / 3600
        if row.get("speaker"):
            self.speakers.add(row["speaker"])

    def leave_out(self, remark: Remark, strict: bool) -> None:
        """Count a remark about a manifest item as a reason for skipping or as a note.

        Raises:
            ValueError: `strict` is set and the remark is a reason for skipping, not a note.
        """
        if remark.reason in NOTES:
            self.notes.add(remark.reason, remark.example)
            return
        assert remark.reason in REASONS, remark.reason
        example = remark.example.encode("utf-8", "replace").decode()
        if strict:
            detail = remark.detail.encode("utf-8", "replace").decode() or REASONS[remark.reason]
            raise ValueError(f"{self.split}: {example}: {remark.reason} ({detail})")
        self.skipped.add(remark.reason, example)

    def update(self, part: Summary) -> None:
        """Add the statistics of one part of a split to those of the split."""
        self.rows += part.rows
        self.hours += part.hours
        self.speakers |= part.speakers
        self.skipped.update(part.skipped)
        self.notes.update(part.notes)

    def as_dict(self) -> dict[str, Any]:
        counts = {name: vars(getattr(self, name)) for name in ("skipped", "notes")}
        return {**vars(self), "speakers": sorted(self.speakers), **counts}

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Summary:
        """Create a summary from the dict that `as_dict` returned."""
        summary = cls(stored["split"], stored["rows"], stored["hours"], set(stored["speakers"]))
        for name in ("skipped", "notes"):
            for reason, count in stored[name]["reasons"].items():
                getattr(summary, name).add(reason, stored[name]["examples"][reason], count)
        return summary

    def __str__(self) -> str:
        size = f"{self.rows} entries, {self.hours:.2f} h, {len(self.speakers)} speakers"
        noted = f"; notes: {self.notes}" if self.notes else ""
        return f"{self.split}: {size}; skipped: {self.skipped}{noted}"


def fingerprint_of(part: ManifestPart, *depends_on: object) -> str:
    """Return a hash of everything that a manifest file is computed from.

    It covers the part's name, the sizes and modification times of its sources and recordings, and the values
    `depends_on`. Each recording costs one call of `stat`.
    """
    stamps = []
    for source in part.sources:
        stat = source.stat()
        stamps.append((str(source.resolve()), stat.st_mtime_ns, stat.st_size if source.is_file() else None))
    text = repr((part.name, part.rows, depends_on, stamps))
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape"))
    recordings = tqdm(part.recordings(), desc=f"{part.name}: checking", leave=False, delay=1.0)
    with ThreadPoolExecutor(THREADS) as pool:
        for some in stamped(map(Content.of_file, recordings), pool):
            found = repr([(content.address, stamp) for content, stamp in some])
            digest.update(found.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def read_if_current(path: Path, fingerprint: str, strict: bool) -> Summary | None:
    """Return the summary of a manifest file that is complete and up to date, else None.

    Args:
        fingerprint: hash of what the file should have been computed from, see `fingerprint_of`.

    Raises:
        ValueError: `strict` is set and items of the file were skipped.
    """
    stored = read_note(path)
    if not stored or stored["fingerprint"] != fingerprint or (stored["summary"]["rows"] and not path.exists()):
        return None
    summary = Summary.of(stored["summary"])
    if strict and summary.skipped:
        raise ValueError(f"{summary.split}: skipped {summary.skipped}")
    return summary


def read_note(path: Path) -> dict[str, Any]:
    """Return the note that `write_with_note` wrote beside a manifest file; {} if there is none.

    It holds the file's fingerprint, its summary, and the further values `more`.
    """
    note = _note_of(path)
    return json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}


def write_with_note(
    path: Path, fingerprint: str, write: Callable[[], Summary], more: Mapping[str, Any] | None = None
) -> Summary:
    """Write a manifest file by calling `write`, then its note; without entries the file is removed.

    Args:
        fingerprint: hash of what the file is computed from, for the note.
        write: function that writes the file and returns its summary.
        more: further values for the note; `write` may fill them in.
    """
    note = _note_of(path)
    with writing(note):
        note.unlink(missing_ok=True)  # the old file must not count as up to date while the new one is written
    summary = write()
    if not summary.rows:
        path.unlink(missing_ok=True)
    write_json(note, {"fingerprint": fingerprint, "summary": summary.as_dict(), **(more or {})})
    return summary


def write_rows(
    writer: ManifestWriter,
    summary: Summary,
    batches: Iterable[tuple[int, Iterable[Item | Remark]]],
    *,
    total: int | None,
    title: str,
    strict: bool,
) -> Summary:
    """Write the entries of each batch, count entries and remarks in `summary`, and show a progress bar.

    If there is no entry at all, the file is discarded.

    Args:
        writer: writer whose `with` block has been entered, so that an error leaves no file behind.
        batches: for each batch the number of items that were checked, and the resulting entries and remarks in order.
        total: total number of items; None = unknown.
        title: title of the progress bar.
        strict: whether the first unusable item is an error.
    """
    with tqdm(total=total, desc=title, leave=False, dynamic_ncols=True) as bar:
        for count, found in batches:
            rows = []
            for each in found:
                each = each if isinstance(each, Remark) else _with_bytes(each, writer.embedded)
                if isinstance(each, Remark):
                    summary.leave_out(each, strict)
                else:
                    summary.add_row(each)
                    rows.append(each)
            if rows:
                writer.write(rows)
            bar.update(count)
        if not summary.rows:
            writer.discard()
    return summary


def _with_bytes(row: Item, embedded: Sequence[str]) -> Item | Remark:
    """Return an entry with the paths of its `embedded` recordings replaced by the bytes of the files.

    A remark is returned instead if a file is missing or cannot be read.
    """
    try:
        return row | {name: Path(row[name]).read_bytes() for name in embedded if isinstance(row.get(name), str)}
    except FileNotFoundError:
        return Remark("missing", row["id"])
    except OSError:
        return Remark("unreadable", row["id"])


def remove_others(folder: Path, names: Collection[str]) -> None:
    """Remove the shards in a folder, with their notes, whose parts are not among `names`."""
    for note in folder.glob(f"*{_NOTE}"):
        name = note.name.removesuffix(_NOTE)
        if name not in names:
            (folder / f"{name}.parquet").unlink(missing_ok=True)
            note.unlink(missing_ok=True)


def problem_of_texts(item: Item) -> str | None:
    """Return the reason (a key of `REASONS`) why the texts of an item make it unusable; None if there is none."""
    try:
        for value in item.values():
            if isinstance(value, str):
                value.encode()  # fails for surrogates, which `corpus_readers.read_lines` puts for invalid UTF-8
    except UnicodeEncodeError:
        return "not UTF-8"
    blank = any(name in item and not (item[name] or "").strip() for name in ("t1", "t2"))
    return "no text" if blank else None


_NOTE = ".summary.json"


def _note_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}{_NOTE}")
