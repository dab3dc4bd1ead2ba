"""What all `recipes/<Corpus>/prepare.py` share: from a corpus as it was downloaded to manifests.

A corpus has splits, a split has parts, and a part makes one file: `<split>.csv` (one part) or `<split>/<part>.parquet`.
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
from omnikit.data.skipped import Item, Remark
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.option_ranges import Range
from omnikit.prepare.shards import (
    ManifestPart,
    Summary,
    fingerprint_of,
    problem_of_texts,
    read_if_current,
    remove_others,
    write_rows,
    write_with_note,
)

THREADS = 4  # opening files waits on the disk more than on the processor
VERSION = 2
"""Goes up when the same sources make other rows, so that manifests are made again."""


@dataclass(frozen=True)
class Corpus:
    """How a corpus lies on the disk."""

    layout: str
    """In one line, for users."""
    fields: tuple[str, ...]
    splits: Callable[[Path], dict[str, Path]]
    """The data folder -> name of each split that it holds, and where the split is."""
    parts: Callable[[str, Path], list[ManifestPart]]
    """A split's name and place -> its parts."""
    shards: bool = False
    """Parquet shards instead of one CSV file."""
    embedded: bool = False
    """Recordings stand in the shards."""
    sample_rate: int | None = None
    """Hz, as published."""
    default_splits: tuple[str, ...] = ()
    """Where no splits are asked for; () = all."""

    def manifest(self, save_folder: Path, split: str) -> Path:
        """The manifest of a split: a folder of shards, or a file."""
        return save_folder / split if self.shards else save_folder / f"{split}.csv"


@dataclass(frozen=True)
class Checks:
    """How closely things are looked at."""

    strict: bool = False
    decode_all: bool = False
    max_seconds: float | None = None


def prepare(
    corpus: Corpus,
    data_folder: str | Path,
    save_folder: str | Path,
    splits: Sequence[str] | None = None,
    checks: Checks | None = None,
) -> Iterator[Summary]:
    """Writes the manifests of splits (None: of all), and yields the summary of each when it is whole.

    Raises:
        ValueError: no such folder or split, a limit out of range, a split without a single usable row, a disk that is
            full; with `strict`, the first thing that makes no row.
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
    """The command line of a `prepare.py`; bad input is one line and status 2."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--data_folder", required=True, metavar="DIR", help=f"holds {corpus.layout}")
    parser.add_argument("--save_folder", required=True, metavar="DIR", help="where manifests go; made if missing")
    default = " ".join(corpus.default_splits) or "all"
    parser.add_argument("--splits", nargs="+", metavar="NAME", help=f"default: {default}")
    parser.add_argument("--strict", action="store_true", help="stop at the first thing that makes no row")
    parser.add_argument("--decode_all", action="store_true", help="read recordings to their end, look for clipping")
    most = f"leave longer recordings out; default and most: {LONGEST:g}"
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
    """Return the file that a row's recording is taken from: its path, or the one that is there in another format."""
    return path if os.path.exists(path) else str(with_other_ending(Path(path)) or path)


class _Split:
    """Makes one split."""

    def __init__(self, corpus: Corpus, split: str, save_folder: Path, checks: Checks):
        self.corpus, self.split, self.checks = corpus, split, checks
        self.manifest = corpus.manifest(save_folder, split)
        self.ids: set[str] = set()
        self.unread: list[Path] = []  # shards made before, whose ids have not been needed

    def make(self, place: Path) -> Summary:
        """All of its parts."""
        total = Summary(self.split)
        parts = self.corpus.parts(self.split, place)
        for i, part in enumerate(parts):
            title = f"{self.split} {i + 1}/{len(parts)}" if len(parts) > 1 else self.split
            total.update(self._part(part, title))
        if not total.rows:
            raise ValueError(f"{place}: no usable row; {total}")
        if self.corpus.shards:
            remove_others(self.manifest, {part.name for part in parts})
        return total

    def _part(self, part: ManifestPart, title: str) -> Summary:
        path = self.manifest / f"{part.name}.parquet" if self.corpus.shards else self.manifest
        depends_on = (VERSION, self.corpus.fields, self.checks.decode_all, self.checks.max_seconds)
        fingerprint = fingerprint_of(replace(part, recordings=lambda: self._recordings(part)), *depends_on)
        summary = read_if_current(path, fingerprint, self.checks.strict)
        if summary is not None:
            self.unread += [path] if summary.rows else []
            return summary
        for made in self.unread:
            self.ids.update(pq.read_table(made, columns=["id"])["id"].to_pylist())
        self.unread.clear()
        return write_with_note(path, fingerprint, lambda: self._write(part, path, title))

    def _recordings(self, part: ManifestPart) -> Iterator[str]:
        """The recordings that rows of a part name, also those that are missing or broken."""
        if not self.corpus.embedded and {*AUDIO} & {*self.corpus.fields}:
            for item in part.items():
                if not isinstance(item, Remark):
                    yield from (_present(item[name]) for name in AUDIO if item.get(name) is not None)

    def _write(self, part: ManifestPart, path: Path, title: str) -> Summary:
        summary = Summary(self.split)
        with (
            ManifestWriter(path, self.corpus.fields, self.corpus.embedded) as writer,
            ThreadPoolExecutor(THREADS) as pool,
        ):
            batches = ((len(batch), self._rows(batch, pool, summary)) for batch in in_batches(part.items()))
            return write_rows(writer, summary, batches, total=part.rows, title=title, strict=self.checks.strict)

    def _rows(self, batch: list[Item | Remark], pool: ThreadPoolExecutor, summary: Summary) -> Iterator[Item | Remark]:
        for item, found in zip(batch, pool.map(self._check, batch), strict=True):
            yield self._row(item, found, summary)

    def _check(self, item: Item | Remark) -> RecordingCheck:
        """What can be said of an item alone: its first recording, or the first one with a problem."""
        problem = None if isinstance(item, Remark) else problem_of_texts(item)
        if isinstance(item, Remark) or problem:
            return RecordingCheck(problem)
        options = {"decode_all": self.checks.decode_all, "max_seconds": self.checks.max_seconds}
        found = [_checked(item, name, **options) for name in AUDIO if item.get(name) is not None]
        return next((each for each in found if each.problem), found[0] if found else RecordingCheck())

    def _row(self, item: Item | Remark, found: RecordingCheck, summary: Summary) -> Item | Remark:
        """The item with its duration, or why it is no row; `summary` gets the notes."""
        if isinstance(item, Remark):
            return item
        if found.problem:
            return Remark(found.problem, item["id"], found.detail)
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
    """Check a recording of an item, which stands there as a path or as bytes.

    Where the path is missing, a recording of the same name with another ending takes its place in the item, as in a
    corpus that was converted to wav.
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
