"""Converts a downloaded corpus to manifests; shared by all `recipes/<Corpus>/prepare.py`.

A corpus has splits and a split has parts. Each part becomes one file: `<split>.csv` (one part) or
`<split>/<part>.parquet`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from omnikit.audio.reader import LONGEST
from omnikit.data.batched import in_batches
from omnikit.data.find_files import with_other_ending
from omnikit.data.manifest_writer import AUDIO, ManifestWriter
from omnikit.data.recording_check import RecordingCheck, check_recording
from omnikit.data.skipped import Item, Remark, Skipped
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.option_ranges import Range
from omnikit.prepare.dialog_turns import FIELDS as TURN
from omnikit.prepare.dialog_turns import SeenTurns, notes_on_dialogs
from omnikit.prepare.shards import (
    ManifestPart,
    Summary,
    fingerprint_of,
    problem_of_texts,
    read_if_current,
    read_note,
    remove_others,
    write_rows,
    write_with_note,
)

THREADS = 4  # opening files is bound by the disk, not by the processor
DUPLICATES = "duplicate_turns"  # key in the note of a manifest file: dialogs that have a turn twice
VERSION = 2
"""Version of this code, increased when the same sources give other entries, so that manifests are written again."""


@dataclass(frozen=True)
class Corpus:
    """The description of a corpus: its layout on disk, its splits, and the form of its manifests."""

    layout: str
    """Description of the files and folders of the corpus in one line, for users."""
    fields: tuple[str, ...]
    """Names of the manifest fields that the corpus provides."""
    splits: Callable[[Path], dict[str, Path]]
    """Function from the data folder to the name and path of each split in it."""
    parts: Callable[[str, Path], list[ManifestPart]]
    """Function from a split's name and path to its parts, each of which becomes one file."""
    shards: bool = False
    """Whether a split becomes a folder of Parquet shards instead of one CSV file."""
    embedded: bool = False
    """Whether recordings are stored as bytes in the Parquet shards instead of as paths."""
    sample_rate: int | None = None
    """Sample rate of the published recordings in Hz; None = not checked."""
    default_splits: tuple[str, ...] = ()
    """Names of the splits that are prepared by default; () = all."""

    def manifest(self, save_folder: Path, split: str) -> Path:
        """Return the path of a split's manifest: a folder of Parquet shards, or a CSV file."""
        return save_folder / split if self.shards else save_folder / f"{split}.csv"


@dataclass(frozen=True)
class Checks:
    """Options for checking recordings and entries while a corpus is prepared."""

    strict: bool = False
    """Whether the first unusable item is an error instead of being skipped."""
    decode_all: bool = False
    """Whether recordings are decoded completely, which also detects clipping."""
    max_seconds: float | None = None
    """Maximum length of recordings in seconds, longer ones are skipped; None = `omnikit.audio.reader.LONGEST`."""


def prepare(
    corpus: Corpus,
    data_folder: str | Path,
    save_folder: str | Path,
    splits: Sequence[str] | None = None,
    checks: Checks | None = None,
) -> Iterator[Summary]:
    """Write the manifests of a corpus, and yield the summary of each split when its manifest is complete.

    Args:
        data_folder: folder of the downloaded corpus.
        save_folder: folder for the manifests.
        splits: names of the splits to prepare; None = the corpus' default splits, or else all.

    Raises:
        ValueError: no such folder or split, a limit out of range, a split without a usable entry, a full disk; with
            `strict`, the first unusable item.
    """
    checks = checks or Checks()
    if checks.max_seconds is not None and not 0 < checks.max_seconds <= LONGEST:
        raise ValueError(f"--max_seconds {checks.max_seconds:g}: must be above 0 and at most {LONGEST:g}")
    places = _places(corpus, Path(data_folder))
    wanted = list(dict.fromkeys(splits or corpus.default_splits or places))
    unknown = [split for split in wanted if split not in places]
    if unknown:
        raise ValueError(f"--splits {' '.join(unknown)}: not in {data_folder}; choices: {', '.join(places)}")
    for split in wanted:
        yield _Split(corpus, split, Path(save_folder), checks).make(places[split])


def command(corpus: Corpus, description: str, argv: Sequence[str] | None = None) -> None:
    """Run the command line of a `prepare.py`; bad input prints one line and exits with status 2."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--data_folder", required=True, metavar="DIR", help=f"folder that holds {corpus.layout}")
    parser.add_argument("--save_folder", required=True, metavar="DIR", help="folder for manifests; created if missing")
    default = " ".join(corpus.default_splits) or "all"
    parser.add_argument("--splits", nargs="+", metavar="NAME", help=f"splits to prepare; default: {default}")
    parser.add_argument("--strict", action="store_true", help="stop at the first unusable item instead of skipping it")
    parser.add_argument("--decode_all", action="store_true", help="decode recordings completely and detect clipping")
    most = f"skip longer recordings; default and maximum: {LONGEST:g}"
    parser.add_argument("--max_seconds", type=Range(0, LONGEST, above=True), help=most)
    with bad_input_exits():
        options = parser.parse_args(argv)
        checks = Checks(options.strict, options.decode_all, options.max_seconds)
        for summary in prepare(corpus, options.data_folder, options.save_folder, options.splits, checks):
            print(summary, flush=True)


def _places(corpus: Corpus, data_folder: Path) -> dict[str, Path]:
    if not data_folder.is_dir():
        raise ValueError(f"--data_folder {data_folder}: no such folder")
    places = corpus.splits(data_folder)
    if not places:
        raise ValueError(f"--data_folder {data_folder}: holds no {corpus.layout}")
    return places


def _present(path: str) -> str:
    """Return the path of a recording, or of a file of the same name in another format if it does not exist."""
    return path if os.path.exists(path) else str(with_other_ending(Path(path)) or path)


class _Split:
    """Writes the manifest of one split, part by part."""

    def __init__(self, corpus: Corpus, split: str, save_folder: Path, checks: Checks):
        self.corpus, self.split, self.checks = corpus, split, checks
        self.manifest = corpus.manifest(save_folder, split)
        self.ids: set[str] = set()
        self.turns = SeenTurns() if {*TURN} <= {*corpus.fields} else None
        self.unread: list[Path] = []  # reused shards, whose ids are read only when a new shard is written

    def make(self, place: Path) -> Summary:
        """Write all parts of the split that are not up to date, and return the summary of the split.

        Raises:
            ValueError: no entry of the split is usable.
        """
        total = Summary(self.split)
        parts = self.corpus.parts(self.split, place)
        for i, part in enumerate(parts):
            title = f"{self.split} {i + 1}/{len(parts)}" if len(parts) > 1 else self.split
            total.update(self._part(part, title))
        if not total.rows:
            raise ValueError(f"{place}: no usable entry; {total}")
        if self.corpus.shards:
            remove_others(self.manifest, {part.name for part in parts})
        if self.turns is not None:
            total.notes.update(self._notes_on_dialogs(parts))
        return total

    def _notes_on_dialogs(self, parts: Sequence[ManifestPart]) -> Skipped:
        paths = [self._path(part) for part in parts]
        duplicates = [dialog for path in paths for dialog in read_note(path).get(DUPLICATES, ())]
        return notes_on_dialogs([path for path in paths if path.exists()], duplicates)

    def _path(self, part: ManifestPart) -> Path:
        return self.manifest / f"{part.name}.parquet" if self.corpus.shards else self.manifest

    def _part(self, part: ManifestPart, title: str) -> Summary:
        path = self._path(part)
        depends_on = (VERSION, self.corpus.fields, self.checks.decode_all, self.checks.max_seconds)
        fingerprint = fingerprint_of(replace(part, recordings=lambda: self._recordings(part)), *depends_on)
        summary = read_if_current(path, fingerprint, self.checks.strict)
        if summary is not None:
            self.unread += [path] if summary.rows else []
            return summary
        for made in self.unread:
            self.ids.update(pq.read_table(made, columns=["id"])["id"].to_pylist())
            if self.turns is not None:
                self.turns.read(made)
        self.unread.clear()
        more = {}
        return write_with_note(path, fingerprint, lambda: self._write(part, path, title, more), more)

    def _recordings(self, part: ManifestPart) -> Iterator[str]:
        """Yield the paths of all recordings of a part of a split, including missing and damaged ones."""
        if not self.corpus.embedded and {*AUDIO} & {*self.corpus.fields}:
            for item in part.items():
                if not isinstance(item, Remark):
                    yield from (_present(item[name]) for name in AUDIO if item.get(name) is not None)

    def _write(self, part: ManifestPart, path: Path, title: str, more: dict[str, Any]) -> Summary:
        """Write the manifest file of a part and return its summary; values for its note are added to `more`."""
        summary = Summary(self.split)
        with (
            ManifestWriter(path, self.corpus.fields, self.corpus.embedded) as writer,
            ThreadPoolExecutor(THREADS) as pool,
        ):
            batches = ((len(batch), self._rows(batch, pool, summary)) for batch in in_batches(part.items()))
            write_rows(writer, summary, batches, total=part.rows, title=title, strict=self.checks.strict)
        if self.turns is not None:
            more[DUPLICATES] = self.turns.take_duplicates()
        return summary

    def _rows(self, batch: list[Item | Remark], pool: ThreadPoolExecutor, summary: Summary) -> Iterator[Item | Remark]:
        for item, found in zip(batch, pool.map(self._check, batch), strict=True):
            yield self._row(item, found, summary)

    def _check(self, item: Item | Remark) -> RecordingCheck:
        """Check a manifest item; return the first problem, or else the result for its first recording."""
        problem = None if isinstance(item, Remark) else problem_of_texts(item)
        if isinstance(item, Remark) or problem:
            return RecordingCheck(problem)
        options = {"decode_all": self.checks.decode_all, "max_seconds": self.checks.max_seconds}
        found = [_checked(item, name, **options) for name in AUDIO if item.get(name) is not None]
        return next((each for each in found if each.problem), found[0] if found else RecordingCheck())

    def _row(self, item: Item | Remark, found: RecordingCheck, summary: Summary) -> Item | Remark:
        """Return an item with its duration added, or the reason for skipping it; notes are added to `summary`."""
        if isinstance(item, Remark):
            return item
        if found.problem:
            return Remark(found.problem, item["id"], found.detail)
        if self.turns is not None and self.turns.is_duplicate(item):  # first, as ids name dialog and turn
            return Remark("duplicate turn", item["id"])
        if item["id"] in self.ids:
            return Remark("duplicate id", item["id"])
        self.ids.add(item["id"])
        if found.seconds:
            item["duration"] = round(found.seconds, 4)
        if found.rate and self.corpus.sample_rate and found.rate != self.corpus.sample_rate:
            summary.notes.add("another rate", item["id"])
        for note in (*(["several channels"] if found.channels > 1 else []), *found.notes):
            summary.notes.add(note, item["id"])
        return item


def _checked(item: Item, name: str, **options: Any) -> RecordingCheck:
    """Check a recording of a manifest item, given as a path or as bytes.

    If the path does not exist, a recording of the same name with another ending replaces it in the item, as in a corpus
    that was converted to WAV.
    """
    source = item[name]
    if isinstance(source, bytes):
        return check_recording(source, f"entry {item['id']}", **options)
    found = check_recording(source, **options)
    other = with_other_ending(Path(source)) if found.problem == "missing" else None
    if other is None:
        return found
    item[name] = str(other)
    found = check_recording(other, **options)
    return replace(found, notes=(*found.notes, "another ending"))
