"""Offline inference: many recordings or texts through a system, results as lines of JSON beside the wavs.

Guide: docs/batch.md. Each process of torchrun takes every n-th row and writes a file of its own; what was finished
stands in the files of all and is not done again, whatever the number of processes is then.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnikit.api import Omni
from omnikit.audio.io import MAX_SECONDS, save_audio, wav_name
from omnikit.checkpoint import SHIPPED, existing
from omnikit.data.find_files import READABLE, is_recording, walk
from omnikit.data.manifest_reader import ListedEntries, ManifestEntry, Recording, TableEntries, read_manifest
from omnikit.data.skipped import Skipped
from omnikit.errors import writing
from omnikit.files import make_folder, read_text, write_bytes, write_json
from omnikit.offline.batches import DecodedAnswer, Problem, by_model, check_batch_size, each_reply, sound
from omnikit.offline.single_or_many import TEXT, is_sharded
from omnikit.tasks import TASKS, Task
from omnikit.torchrun import Share
from omnikit.weights import FILE_NAME

RUN = "run.json"
"""What the results of a folder belong to."""
OTHER_FILE = "other file"
"""The reason under which a folder's files that are no recordings are counted."""
NOTHING = {"text": None, "wav": None, "seconds": None, "truncated": None, "skipped": None}
"""The fields of a line besides `id`."""
SURROGATES = "backslashreplace"
"""Of file names that are not UTF-8: they are written as JSON's own escapes."""


@dataclass
class Counts:
    """What one process did of its share."""

    entries: int = 0
    kept: int = 0  # finished before
    done: int = 0
    truncated: int = 0
    seconds: float = 0.0  # of speech
    skipped: Skipped = field(default_factory=Skipped)
    others: Skipped = field(default_factory=Skipped)  # files of the folder that are no recordings

    def __str__(self) -> str:
        words = [f"{self.done} of {self.entries} done"]
        words += [f"{self.kept} finished before"] if self.kept else []
        words += [f"{self.truncated} truncated"] if self.truncated else []
        words += [f"{self.seconds:.1f} s of speech"] if self.seconds else []
        words += [f"skipped: {self.skipped}"]
        words += [f"not taken: {self.others}"] if self.others else []
        return ", ".join(words)


def read_entries(source: Path, task: Task) -> ListedEntries | TableEntries:
    """The rows of a folder of recordings, of a manifest, or of a text file with a text in each line; `skipped` counts
    what makes no row.

    Raises:
        ValueError: there is no such thing, it holds nothing, or two rows share an id.
    """
    if source.suffix == TEXT:
        entries = ListedEntries(_lines(source))
    elif source.is_dir() and not is_sharded(source):
        entries = ListedEntries(_recordings(source))
    else:
        entries = read_manifest(source)
    if not len(entries):
        wanted = "text" if task.given == "text" else f"recording ({', '.join(READABLE)})"
        others = other_files(source)
        raise ValueError(f"{source}: holds no {wanted}{f'; it has {others}' if others else ''}")
    return entries


def other_files(source: Path) -> Skipped:
    """Count the files below a folder that are no recordings; nothing where the source is no folder of them."""
    found = Skipped()
    if source.is_dir() and not is_sharded(source):
        for path in walk(source):
            if not is_recording(path):
                found.add(OTHER_FILE, path.relative_to(source).as_posix())
    return found


def _recordings(folder: Path) -> list[ManifestEntry]:
    """Every recording below a folder; its id is its path there, with its ending where two differ in nothing else."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(walk(folder)) if is_recording(path)}
    alike = Counter(_stem(name) for name in paths)
    ids = {name: _stem(name) if alike[_stem(name)] == 1 else name for name in paths}
    return [ManifestEntry(ids[name], "", a1=Recording(ids[name], path=str(path))) for name, path in paths.items()]


def _stem(name: str) -> str:
    return str(Path(name).with_suffix(""))


def _lines(path: Path) -> list[ManifestEntry]:
    """The lines of a file that are not blank, with their numbers as ids."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    lines = read_text(path, "utf-8-sig").split("\n")
    return [ManifestEntry(f"{number:05d}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


class Job:
    """Rows to be answered, and the folder that takes the results.

    Args:
        task: a name in `TASKS`.
        source: see `read_entries`.
        folder: made if it is not there.
        about: what the results depend on besides the rows; has to agree with what the folder's results were made with.

    Raises:
        ValueError: see `read_entries`; or the folder holds results of another run, or lies in a folder of questions,
            where answers would be taken for questions.
    """

    def __init__(
        self, task: str, source: str, folder: str, *, batch_size: int, about: dict[str, Any], share: Share | None = None
    ):
        check_batch_size(batch_size)
        self.task, self.batch_size, self.share = TASKS[task], batch_size, share or Share.of_torchrun()
        self.folder, place = Path(folder), Path(source).resolve()
        if self.task.speaks and place.is_dir() and self.folder.resolve().is_relative_to(place):
            raise ValueError(f"--output {folder}: lies in {source}, where answers would be taken for questions")
        entries = read_entries(Path(source), self.task)
        self.entries, self.unread = self._own(entries, source), entries.skipped if self.share.rank == 0 else Skipped()
        self.others = other_files(Path(source)) if self.share.rank == 0 else Skipped()
        self.about = {"task": task, "source": str(place), **about}
        self._check_same()

    def run(self, omni: Omni) -> Counts:
        """Answer what is not finished yet.

        Raises:
            ValueError: the folder cannot be written to.
        """
        with writing(self.folder):
            make_folder(self.folder)
        if self.share.rank == 0:
            write_json(self.folder / RUN, self.about)
        finished = self._finished()
        entries = [entry for entry in self.entries if entry.id not in finished]
        counts = Counts(entries=len(self.entries), kept=len(self.entries) - len(entries), others=self.others)
        counts.skipped.update(self.unread)
        found = each_reply(
            by_model(omni.decoder.of_capacity(self.batch_size), self.task), self.task, entries,
            batch_size=self.batch_size, title=self.task.name, quiet=self.share.rank > 0, max_seconds=MAX_SECONDS,
        )  # fmt: skip
        with closing(found):  # the progress bar ends before an error is told
            for entry, reply in found:
                if isinstance(reply, Problem):
                    counts.skipped.add(reply.reason, entry.id)
                    self._write({"id": entry.id, **NOTHING, "skipped": str(reply)})
                else:
                    line = self._keep(omni, entry, reply)
                    self._write(line)
                    counts.done += 1
                    counts.truncated += reply.truncated
                    counts.seconds += line["seconds"] or 0.0
        return counts

    @property
    def results(self) -> Path:
        """The file of this process."""
        return self.folder / _results_name(self.share.rank)

    def _own(self, entries: Sequence[ManifestEntry], source: str) -> list[ManifestEntry]:
        """This process's share of rows."""
        seen, own = set(), []
        for number, entry in enumerate(entries):
            if entry.id in seen:
                raise ValueError(f"{source}: two entries have the id {entry.id!r}")
            seen.add(entry.id)
            if number % self.share.processes == self.share.rank:
                own.append(entry)
        return own

    def _check_same(self) -> None:
        path = self.folder / RUN
        if not path.exists():
            return
        try:
            there = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ValueError(f"{path}: was not written by this command; give another --output") from None
        other = [f"{key} was {there.get(key)}, is {now}" for key, now in self.about.items() if there.get(key) != now]
        if other:
            raise ValueError(f"--output {self.folder}: holds results of another run ({'; '.join(other)})")

    def _finished(self) -> set[str]:
        """Ids in the files of all processes. This one cleans its own, and those of former processes that fall to it."""
        finished = set()
        for path in self.folder.glob("results*.jsonl"):
            number = re.fullmatch(r"results(?:\.(\d+))?\.jsonl", path.name)
            if number is None:
                continue
            kept = _finished_lines(path)
            if int(number[1] or 0) % self.share.processes == self.share.rank:
                write_bytes(path, b"".join(kept.values()))
            finished.update(kept)
        return finished

    def _keep(self, omni: Omni, entry: ManifestEntry, reply: DecodedAnswer) -> dict[str, Any]:
        """Write the wav of a reply, if it has sound -> its line."""
        line = {"id": entry.id, **NOTHING, "text": reply.text, "truncated": reply.truncated}
        if not self.task.speaks:
            return line
        wav = sound(omni.model.codec, reply.codes)
        if len(wav):
            line["wav"] = wav_name(entry.id)
            save_audio(self.folder / line["wav"], wav, omni.sample_rate)
        return {**line, "seconds": round(len(wav) / omni.sample_rate, 4)}

    def _write(self, line: dict[str, Any]) -> None:
        """Append a line, whole or not at all. It counts as finished, so the wav is there before."""
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode(errors=SURROGATES)
        with writing(self.results):
            before = self.results.stat().st_size if self.results.exists() else 0
            try:
                with self.results.open("ab") as file:
                    file.write(data)
            except OSError:
                if self.results.exists():
                    os.truncate(self.results, before)
                raise


def checkpoint_stamp(checkpoint: str | None) -> dict[str, Any]:
    """What tells a checkpoint from another, and from itself before it was trained further.

    Raises:
        ValueError: it is not to be had.
    """
    folder = existing(SHIPPED if checkpoint is None else checkpoint)
    weights = folder / FILE_NAME
    written = weights.stat().st_mtime_ns if checkpoint is not None and weights.is_file() else None
    return {"checkpoint": None if checkpoint is None else str(folder.resolve()), "written": written}


def _results_name(rank: int) -> str:
    return f"results.{rank}.jsonl" if rank else "results.jsonl"


def _finished_lines(path: Path) -> dict[str, bytes]:
    """Id -> line, without those of skipped rows or lost wavs, which are tried again, and without what a kill cut short.

    Raises:
        ValueError: another line is no result.
    """
    kept = {}
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not text.endswith(b"\n"):
            break
        try:
            line = json.loads(text)
            if line["skipped"] is None and (line["wav"] is None or (path.parent / line["wav"]).is_file()):
                kept[line["id"]] = text
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: line {number} is no result of this command") from None
    return kept
