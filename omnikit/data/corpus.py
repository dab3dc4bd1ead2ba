"""What all `recipes/<Corpus>/prepare.py` share: from a corpus as it was downloaded to manifests.

A corpus has splits, a split has parts, and a part makes one file: `<split>.csv` (one part) or `<split>/<part>.parquet`.
Beside each file `<name>.summary.json` says what it was made from and what was left out. A part that is whole and whose
sources have not changed is not made again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from omnikit.data.manifest import AUDIO, ManifestWriter
from omnikit.data.recordings import Recording, check_recording
from omnikit.data.skipped import Skipped
from omnikit.errors import bad_input_exits
from omnikit.evaluate.tables import write_json

REASONS = {
    "missing": "a text names a recording that is not there",
    "empty": "the recording has no samples",
    "unreadable": "the recording is no audio or is cut short",
    "too long": "it is longer than `--max_seconds`",
    "clipped": "1 % of its samples or more are at full scale (found with `--decode_all`)",
    "no text": "the text is blank",
    "audio without text": "no text names the recording",
    "not UTF-8": "a text or a file name is in another encoding",
    "duplicate id": "a row of the split has that id already",
    "malformed": "a line or an entry is not what the layout says",
    "bad codes": "not the codec's number of codes in each frame, or a code outside the codebook",
    "shard unreadable": "an upstream Parquet file is cut short or damaged",
}
"""Why something makes no row."""
NOTES = {
    "another rate": "the recording has not the corpus' sample rate; it is resampled when loaded",
    "several channels": "they are mixed when loaded",
    "later turn": "only the first turn of a conversation can be understood alone; the others make no row",
}
"""What is counted and does no harm."""
THREADS = 4  # opening files waits on the disk more than on the processor
BATCH = 512  # rows that are checked and written together
VERSION = 1
"""Goes up when the same sources make other rows, so that manifests are made again."""

Item = dict[str, Any]
"""A row before it is checked, by the names of `manifest.FIELDS`; `duration` is filled in."""


@dataclass(frozen=True)
class Remark:
    """Something that makes no row: one of `REASONS`, or of `NOTES`."""

    reason: str
    example: str


@dataclass(frozen=True)
class Part:
    """What one file is made from."""

    name: str
    sources: Sequence[Path]
    """The part is made again when one of these files or folders has changed."""
    items: Callable[[], Iterable[Item | Remark]]
    """The same ones in the same order at each call."""
    rows: int | None = None
    """How many, if that is known beforehand."""


@dataclass(frozen=True)
class Corpus:
    """How a corpus lies on the disk."""

    layout: str
    """In one line, for users."""
    fields: tuple[str, ...]
    splits: Callable[[Path], dict[str, Path]]
    """The data folder -> name of each split that it holds, and where the split is."""
    parts: Callable[[str, Path], list[Part]]
    """A split's name and place -> its parts."""
    shards: bool = False
    """Parquet shards instead of one CSV file."""
    embedded: bool = False
    """Recordings stand in the shards."""
    sample_rate: int | None = None
    """Hz, as published."""
    default_splits: tuple[str, ...] = ()
    """Where no splits are asked for; () = all."""


@dataclass(frozen=True)
class Checks:
    """How closely things are looked at."""

    strict: bool = False
    decode_all: bool = False
    max_seconds: float | None = None


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


def prepare(
    corpus: Corpus,
    data_folder: str | Path,
    save_folder: str | Path,
    splits: Sequence[str] | None = None,
    checks: Checks | None = None,
) -> Iterator[Summary]:
    """Writes the manifests of splits (None: of all), and yields the summary of each when it is whole.

    Raises:
        ValueError: no such folder or split, a split without a single usable row, a disk that is full; with `strict`,
            the first thing that makes no row.
    """
    checks = checks or Checks()
    places = _places(corpus, Path(data_folder))
    wanted = list(dict.fromkeys(splits or corpus.default_splits or places))
    unknown = [split for split in wanted if split not in places]
    if unknown:
        raise ValueError(f"--splits {' '.join(unknown)}: not in {data_folder}; choices: {', '.join(places)}")
    for split in wanted:
        yield _Split(corpus, split, Path(save_folder), checks).make(places[split])


def command(corpus: Corpus, description: str, argv: Sequence[str] | None = None) -> None:
    """The command line of a `prepare.py`; bad input is one line and status 2."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_folder", required=True, metavar="DIR", help=f"holds {corpus.layout}")
    parser.add_argument("--save_folder", required=True, metavar="DIR", help="where manifests go; made if missing")
    default = " ".join(corpus.default_splits) or "all"
    parser.add_argument("--splits", nargs="+", metavar="NAME", help=f"default: {default}")
    parser.add_argument("--strict", action="store_true", help="stop at the first thing that makes no row")
    parser.add_argument("--decode_all", action="store_true", help="read recordings to their end, look for clipping")
    parser.add_argument("--max_seconds", type=float, help="leave longer recordings out; default: no limit")
    options = parser.parse_args(argv)
    checks = Checks(options.strict, options.decode_all, options.max_seconds)
    with bad_input_exits():
        for summary in prepare(corpus, options.data_folder, options.save_folder, options.splits, checks):
            print(summary, flush=True)


def _places(corpus: Corpus, data_folder: Path) -> dict[str, Path]:
    if not data_folder.is_dir():
        raise ValueError(f"--data_folder {data_folder}: no such folder")
    places = corpus.splits(data_folder)
    if not places:
        raise ValueError(f"--data_folder {data_folder}: holds no {corpus.layout}")
    return places


class _Split:
    """Makes one split."""

    def __init__(self, corpus: Corpus, split: str, save_folder: Path, checks: Checks):
        self.corpus, self.split, self.checks = corpus, split, checks
        self.folder = save_folder / split if corpus.shards else save_folder
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
            self._remove_others({part.name for part in parts})
        return total

    def _part(self, part: Part, title: str) -> Summary:
        path = self.folder / (f"{part.name}.parquet" if self.corpus.shards else f"{self.split}.csv")
        note = _note_of(path)
        fingerprint = self._fingerprint(part)
        summary = _kept(path, note, fingerprint)
        if summary is not None:
            if self.checks.strict and summary.skipped:
                raise ValueError(f"{self.split}: skipped {summary.skipped}")
            self.unread += [path] if summary.rows else []
            return summary
        for made in self.unread:
            self.ids.update(pq.read_table(made, columns=["id"])["id"].to_pylist())
        self.unread.clear()
        note.unlink(missing_ok=True)  # until the new one is whole the old manifest must not pass for up to date
        summary = self._write(part, path, title)
        if not summary.rows:
            path.unlink(missing_ok=True)
        _write_note(note, {"fingerprint": fingerprint, "summary": summary.as_dict()})
        return summary

    def _fingerprint(self, part: Part) -> str:
        stamps = []
        for source in part.sources:
            stat = source.stat()
            stamps.append((str(source.resolve()), stat.st_mtime_ns, stat.st_size if source.is_file() else None))
        made_by = (VERSION, part.name, part.rows, self.corpus.fields, self.checks.decode_all, self.checks.max_seconds)
        return hashlib.sha256(repr((made_by, stamps)).encode("utf-8", "surrogateescape")).hexdigest()

    def _write(self, part: Part, path: Path, title: str) -> Summary:
        summary = Summary(self.split)
        with (
            ManifestWriter(path, self.corpus.fields, self.corpus.embedded) as writer,
            ThreadPoolExecutor(THREADS) as pool,
            tqdm(total=part.rows, desc=title, leave=False, dynamic_ncols=True) as bar,
        ):
            for batch in _batches(part.items()):
                rows = []
                for item, found in zip(batch, pool.map(self._check, batch), strict=True):
                    self._count(item, found, rows, summary)
                if rows:
                    writer.write(rows)
                bar.update(len(batch))
            if not summary.rows:
                writer.discard()
        return summary

    def _check(self, item: Item | Remark) -> Recording:
        """What can be said of an item alone: its first recording, or the first one with a problem."""
        problem = None if isinstance(item, Remark) else _problem_of_texts(item)
        if isinstance(item, Remark) or problem:
            return Recording(problem)
        options = {"decode_all": self.checks.decode_all, "max_seconds": self.checks.max_seconds}
        found = [check_recording(item[name], **options) for name in AUDIO if item.get(name) is not None]
        return next((each for each in found if each.problem), found[0] if found else Recording())

    def _count(self, item: Item | Remark, found: Recording, rows: list[Item], summary: Summary) -> None:
        """Put the item into `rows`, or count why it is none."""
        if isinstance(item, Remark):
            self._leave_out(item, summary)
        elif found.problem:
            self._leave_out(Remark(found.problem, item["id"]), summary)
        elif item["id"] in self.ids:
            self._leave_out(Remark("duplicate id", item["id"]), summary)
        else:
            self.ids.add(item["id"])
            if found.seconds:
                item["duration"] = round(found.seconds, 4)
            if found.rate and self.corpus.sample_rate and found.rate != self.corpus.sample_rate:
                summary.notes.add("another rate", item["id"])
            if found.channels > 1:
                summary.notes.add("several channels", item["id"])
            summary.add_row(item)
            rows.append(item)

    def _leave_out(self, remark: Remark, summary: Summary) -> None:
        if remark.reason in NOTES:
            summary.notes.add(remark.reason, remark.example)
            return
        assert remark.reason in REASONS, remark.reason
        example = remark.example.encode("utf-8", "replace").decode()
        if self.checks.strict:
            raise ValueError(f"{self.split}: {example}: {remark.reason} ({REASONS[remark.reason]})")
        summary.skipped.add(remark.reason, example)

    def _remove_others(self, names: set[str]) -> None:
        """Shards of upstream files that are gone."""
        for shard in self.folder.glob("*.parquet"):
            if shard.stem not in names and _note_of(shard).exists():
                shard.unlink()
                _note_of(shard).unlink()


def _batches(items: Iterable[Item | Remark]) -> Iterator[list[Item | Remark]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def _problem_of_texts(item: Item) -> str | None:
    try:
        for value in item.values():
            if isinstance(value, str):
                value.encode()  # what was no UTF-8 stands there as surrogates, see `upstream.read_lines`
    except UnicodeEncodeError:
        return "not UTF-8"
    blank = any(name in item and not (item[name] or "").strip() for name in ("t1", "t2"))
    return "no text" if blank else None


def _note_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}.summary.json")


def _kept(path: Path, note: Path, fingerprint: str) -> Summary | None:
    """The summary of a part that is whole and up to date."""
    if not note.exists():
        return None
    stored = json.loads(note.read_text(encoding="utf-8"))
    if stored["fingerprint"] != fingerprint or (stored["summary"]["rows"] and not path.exists()):
        return None
    return Summary.of(stored["summary"])


def _write_note(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror}); start again to go on") from None
