"""Files that are whole or absent, what each was made from, and what was left out of it.

Beside each file `<name>.summary.json` says both. A file that is whole and whose sources have not changed is not made
again, so a run that was killed goes on where it was.
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
    """What one file is made from."""

    name: str
    sources: Sequence[Path]
    """The part is made again when one of these files or folders has changed."""
    items: Callable[[], Iterable[Item | Remark]]
    """The same ones in the same order at each call."""
    rows: int | None = None
    """How many, if that is known beforehand."""
    recordings: Callable[[], Iterable[str]] = tuple
    """Paths of the recordings that the rows name and that are not among the sources; the part is made again when the
    size or the modification time of one changes."""


@dataclass
class Summary:
    """What a split's manifest holds, or a part of it."""

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
        """Count a remark.

        Raises:
            ValueError: `strict`, and it is no mere note.
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
        """Add what a part of the split holds."""
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
        """The inverse of `as_dict`."""
        summary = cls(stored["split"], stored["rows"], stored["hours"], set(stored["speakers"]))
        for name in ("skipped", "notes"):
            for reason, count in stored[name]["reasons"].items():
                getattr(summary, name).add(reason, stored[name]["examples"][reason], count)
        return summary

    def __str__(self) -> str:
        size = f"{self.rows} rows, {self.hours:.2f} h, {len(self.speakers)} speakers"
        noted = f"; notes: {self.notes}" if self.notes else ""
        return f"{self.split}: {size}; skipped: {self.skipped}{noted}"


def fingerprint_of(part: ManifestPart, *depends_on: object) -> str:
    """A name for what a file is made from: the state of its sources and recordings, the part, and whatever else
    matters. It asks the file system once for each recording."""
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
    """The summary of a file that is whole and up to date.

    Raises:
        ValueError: `strict`, and something was left out of it.
    """
    stored = read_note(path)
    if not stored or stored["fingerprint"] != fingerprint or (stored["summary"]["rows"] and not path.exists()):
        return None
    summary = Summary.of(stored["summary"])
    if strict and summary.skipped:
        raise ValueError(f"{summary.split}: skipped {summary.skipped}")
    return summary


def read_note(path: Path) -> dict[str, Any]:
    """Return what `write_with_note` noted of a file: fingerprint, summary and `more`; empty where there is nothing."""
    note = _note_of(path)
    return json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}


def write_with_note(
    path: Path, fingerprint: str, write: Callable[[], Summary], more: Mapping[str, Any] | None = None
) -> Summary:
    """Let `write` write a file (none where there is no row), then its note.

    Args:
        more: is noted as well; `write` may fill it.
    """
    note = _note_of(path)
    with writing(note):
        note.unlink(missing_ok=True)  # until the new one is whole the old manifest must not pass for up to date
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
    """Write the rows of each batch together and count the rest, with a progress bar; no file where there is no row.

    Args:
        writer: entered, so that an error leaves nothing behind.
        batches: how many things were looked at, and what came of them in their order.
        total: things in all, if that is known.
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
    """A row in whose `embedded` recordings the bytes of a file stand in place of its path."""
    try:
        return row | {name: Path(row[name]).read_bytes() for name in embedded if isinstance(row.get(name), str)}
    except FileNotFoundError:
        return Remark("missing", row["id"])
    except OSError:
        return Remark("unreadable", row["id"])


def remove_others(folder: Path, names: Collection[str]) -> None:
    """Shards of parts that are no more."""
    for note in folder.glob(f"*{_NOTE}"):
        name = note.name.removesuffix(_NOTE)
        if name not in names:
            (folder / f"{name}.parquet").unlink(missing_ok=True)
            note.unlink(missing_ok=True)


def problem_of_texts(item: Item) -> str | None:
    """Why the texts of an item make no row."""
    try:
        for value in item.values():
            if isinstance(value, str):
                value.encode()  # what was no UTF-8 stands there as surrogates, see `corpus_readers.read_lines`
    except UnicodeEncodeError:
        return "not UTF-8"
    blank = any(name in item and not (item[name] or "").strip() for name in ("t1", "t2"))
    return "no text" if blank else None


_NOTE = ".summary.json"


def _note_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}{_NOTE}")
