"""Offline batch inference: answer many recordings or texts, and write lines of JSON and wav files to a folder.

Guide: docs/batch.md. Each of n torchrun processes answers every n-th entry and writes its own results file. A job that
is run again skips the entries with a result in any of these files, even if the number of processes has changed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from omnikit.api import Omni
from omnikit.audio.io import MAX_SECONDS, save_audio, wav_name
from omnikit.checkpoint import existing
from omnikit.data.find_files import READABLE, is_recording, walk
from omnikit.data.manifest_reader import ListedEntries, ManifestEntry, Recording, TableEntries, read_manifest
from omnikit.data.skipped import Skipped
from omnikit.errors import writing
from omnikit.files import append_line, appended_lines, make_folder, read_text, write_bytes, write_json
from omnikit.offline.batches import DecodedAnswer, Problem, Respond, by_model, check_batch_size, each_reply, sound
from omnikit.offline.single_or_many import TEXT, is_sharded
from omnikit.tasks import TASKS, Task
from omnikit.torchrun import Share
from omnikit.weights import FILE_NAME

RUN = "run.json"
"""Name of the file in an output folder that records the task, source and system of the results."""
OTHER_FILE = "other file"
"""Reason under which the files of an input folder are counted that are not recordings."""
NOTHING = {"text": None, "wav": None, "seconds": None, "truncated": None, "skipped": None}
"""Default fields of a line in a results file, besides `id`; all have the value null."""


@dataclass
class Counts:
    """Counts of the entries that one process answered, skipped or found finished; printed as a summary."""

    entries: int = 0  # entries of this process
    kept: int = 0  # entries with a result of an earlier run
    done: int = 0  # entries that were answered in this run
    truncated: int = 0
    seconds: float = 0.0  # length of the generated speech
    skipped: Skipped = field(default_factory=Skipped)
    others: Skipped = field(default_factory=Skipped)  # files of the input folder that are no recordings

    def __str__(self) -> str:
        words = [f"{self.done} of {self.entries} done"]
        words += [f"{self.kept} finished before"] if self.kept else []
        words += [f"{self.truncated} truncated"] if self.truncated else []
        words += [f"{self.seconds:.1f} s of speech"] if self.seconds else []
        words += [f"skipped: {self.skipped}"]
        words += [f"ignored: {self.others}"] if self.others else []
        return ", ".join(words)


def read_entries(source: Path, task: Task) -> ListedEntries | TableEntries:
    """Read the manifest entries of a folder of recordings, a manifest, or a text file with a text in each line.

    Unusable entries of a manifest are skipped and counted in `skipped` of the result.

    Raises:
        ValueError: the source does not exist or has no entries, or two entries have the same id.
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
    """Count the files below a folder of recordings that are no recordings; none for a source of another kind."""
    found = Skipped()
    if source.is_dir() and not is_sharded(source):
        for path in walk(source):
            if not is_recording(path):
                found.add(OTHER_FILE, path.relative_to(source).as_posix())
    return found


def _recordings(folder: Path) -> list[ManifestEntry]:
    """Return an entry for every recording below a folder.

    Its id is its path in the folder, with the file extension only where two paths differ in nothing else.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(walk(folder)) if is_recording(path)}
    alike = Counter(_stem(name) for name in paths)
    ids = {name: _stem(name) if alike[_stem(name)] == 1 else name for name in paths}
    return [ManifestEntry(ids[name], "", a1=Recording(ids[name], path=str(path))) for name, path in paths.items()]


def _stem(name: str) -> str:
    return str(Path(name).with_suffix(""))


def _lines(path: Path) -> list[ManifestEntry]:
    """Return an entry for every line of a text file that is not blank, with the line number as its id."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    lines = read_text(path, "utf-8-sig").split("\n")
    return [ManifestEntry(f"{number:05d}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


class Job:
    """A batch inference job: the entries that this process answers, and the folder for the results.

    A job that was interrupted is resumed by creating it again with the same arguments.

    Args:
        task: name of a task in `TASKS`.
        source: folder, manifest or text file with the questions, see `read_entries`.
        folder: output folder, which is created if it does not exist.
        batch_size: number of entries that are answered together.
        about: what the results depend on besides task and source, such as checkpoint and options; it has to agree with
            that of results which the folder already holds.
        share: this process's rank among the processes of the job; None = as torchrun says.
        chosen: ids of the entries to answer; None = all.
        flag: command-line flag that names the output folder in error messages.

    Raises:
        ValueError: see `read_entries`; or the folder holds results of another run, or is inside a folder of questions,
            where spoken answers would be taken for questions.
    """

    def __init__(
        self,
        task: str,
        source: str,
        folder: str,
        *,
        batch_size: int,
        about: dict[str, Any],
        share: Share | None = None,
        chosen: Collection[str] | None = None,
        flag: str = "--output",
    ):
        check_batch_size(batch_size)
        self.task, self.batch_size, self.share = TASKS[task], batch_size, share or Share.of_torchrun()
        self.folder, self.flag, place = Path(folder), flag, Path(source).resolve()
        if self.task.speaks and place.is_dir() and self.folder.resolve().is_relative_to(place):
            raise ValueError(f"{flag} {folder}: lies in {source}, where answers would be taken for questions")
        entries = read_entries(Path(source), self.task)
        self.entries = self._own(entries, source, chosen)
        self.unread = entries.skipped if self.share.rank == 0 else Skipped()
        self.others = other_files(Path(source)) if self.share.rank == 0 else Skipped()
        self.about = {"task": task, "source": str(place), **about}
        self._check_same()

    def run(self, omni: Omni) -> Counts:
        """Answer the entries that have no result yet with a system, write the results and return the counts.

        Raises:
            ValueError: the folder cannot be written to.
        """
        respond = by_model(omni.decoder.with_capacity(self.batch_size), self.task)
        return self.run_with(respond, partial(sound, omni.model.codec), omni.sample_rate)

    def run_with(
        self,
        respond: Respond,
        decode: Callable[[Tensor], Tensor],
        sample_rate: int,
        *,
        max_seconds: float | None = MAX_SECONDS,
    ) -> Counts:
        """Answer the entries that have no result yet, write the results and return the counts.

        Args:
            respond: function that answers a batch.
            decode: function that returns the waveform [N] of an answer's codes [K, T].
            sample_rate: sample rate of the waveforms in Hz.
            max_seconds: maximum length of a recording; longer ones are skipped. None = as long as they may be.

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
            respond, self.task, entries,
            batch_size=self.batch_size, title=self.task.name, quiet=self.share.rank > 0, max_seconds=max_seconds,
        )  # fmt: skip
        with closing(found):  # so that the progress bar ends before an error is printed
            for entry, reply in found:
                if isinstance(reply, Problem):
                    counts.skipped.add(reply.reason, entry.id)
                    self._write({"id": entry.id, **NOTHING, "skipped": str(reply)})
                else:
                    line = self._keep(entry, reply, decode, sample_rate)
                    self._write(line)
                    counts.done += 1
                    counts.truncated += reply.truncated
                    counts.seconds += line["seconds"] or 0.0
        return counts

    @property
    def results(self) -> Path:
        """Path of the file to which this process writes its results."""
        return self.folder / _results_name(self.share.rank)

    def _own(
        self, entries: Sequence[ManifestEntry], source: str, chosen: Collection[str] | None
    ) -> list[ManifestEntry]:
        """Return this process's share of the chosen entries; the turns of a dialog are in the share of one process.

        Raises:
            ValueError: two entries of the source have the same id.
        """
        seen, wanted = set(), []
        for entry in entries:
            if entry.id in seen:
                raise ValueError(f"{source}: two entries have the id {entry.id!r}")
            seen.add(entry.id)
            if chosen is None or entry.id in chosen:
                wanted.append(entry)
        groups: dict[str, list[ManifestEntry]] = {}
        for entry in wanted:
            groups.setdefault(f"dialog {entry.dialog}" if entry.dialog else f"entry {entry.id}", []).append(entry)
        own = list(groups.values())[self.share.rank :: self.share.processes]
        return [entry for group in own for entry in group]

    def _check_same(self) -> None:
        there = read_about(self.folder, self.flag)
        if there is None:
            return
        other = [f"{key} was {there.get(key)}, is {now}" for key, now in self.about.items() if there.get(key) != now]
        if other:
            raise ValueError(f"{self.flag} {self.folder}: holds results of another run ({'; '.join(other)})")

    def _finished(self) -> set[str]:
        """Return the ids of entries with a result in the results file of any process.

        Lines of skipped entries and truncated lines are removed from this process's file. The files of ranks that a job
        with more processes has left are divided among the processes and treated in the same way.
        """
        finished = set()
        for rank, path in _results_files(self.folder):
            kept = _finished_lines(path)
            if rank % self.share.processes == self.share.rank:
                write_bytes(path, b"".join(kept.values()))
            finished.update(kept)
        return finished

    def _keep(
        self, entry: ManifestEntry, reply: DecodedAnswer, decode: Callable[[Tensor], Tensor], sample_rate: int
    ) -> dict[str, Any]:
        """Write the wav file of an answer, if it has sound, and return the fields of its result line."""
        line = {"id": entry.id, **NOTHING, "text": reply.text, "truncated": reply.truncated}
        if not self.task.speaks:
            return line
        wav = decode(reply.codes)
        if len(wav):
            line["wav"] = wav_name(entry.id)
            save_audio(self.folder / line["wav"], wav, sample_rate)
        return {**line, "seconds": round(len(wav) / sample_rate, 4)}

    def _write(self, line: dict[str, Any]) -> None:
        """Append the result line of an entry to this process's results file, whole or not at all.

        The line marks the entry as finished, so its wav file must have been written before.
        """
        append_line(self.results, line)


def checkpoint_stamp(checkpoint: str | None) -> dict[str, Any]:
    """Return the path and the modification time (ns) of the weights of a checkpoint, which identify them.

    Raises:
        ValueError: the checkpoint cannot be found.
    """
    folder = existing(checkpoint)
    weights = folder / FILE_NAME
    written = weights.stat().st_mtime_ns if checkpoint is not None and weights.is_file() else None
    return {"checkpoint": None if checkpoint is None else str(folder.resolve()), "written": written}


def read_about(folder: Path, flag: str = "--output") -> dict[str, Any] | None:
    """Return what the results in an output folder depend on, as `RUN` records it; None if there are no results.

    Args:
        folder: the output folder.
        flag: command-line flag that names the output folder in error messages.

    Raises:
        ValueError: the file is not one of this module.
    """
    path = folder / RUN
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ValueError(f"{path}: was not written by this command; give another {flag}") from None


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the result lines of all processes in an output folder by id; a result takes precedence over a skip.

    A last line that is truncated, because the process was killed or is writing it, is left out.

    Raises:
        ValueError: another line is not a result.
    """
    found: dict[str, dict[str, Any]] = {}
    for _, path in _results_files(folder):
        for line, _ in _lines_of(path):
            if line["id"] not in found or line["skipped"] is None:
                found[line["id"]] = line
    return found


def is_finished(line: Mapping[str, Any], folder: Path) -> bool:
    """Return whether a result line holds an answer whose recording, if it has one, is in the folder."""
    return line["skipped"] is None and (line["wav"] is None or (folder / line["wav"]).is_file())


def _results_files(folder: Path) -> list[tuple[int, Path]]:
    """Return the ranks and results files of the processes that wrote to an output folder."""
    paths = [(re.fullmatch(r"results(?:\.(\d+))?\.jsonl", path.name), path) for path in folder.glob("results*.jsonl")]
    return sorted((int(number[1] or 0), path) for number, path in paths if number is not None)


def _results_name(rank: int) -> str:
    return f"results.{rank}.jsonl" if rank else "results.jsonl"


def _finished_lines(path: Path) -> dict[str, bytes]:
    """Read the lines of finished entries, by id, from a results file.

    Lines of skipped entries and of entries whose wav file is missing are left out, so that these are tried again. A
    last line that is truncated, because the process was killed, is left out as well.

    Raises:
        ValueError: another line is not a result.
    """
    kept = {}
    for line, text in _lines_of(path):
        if is_finished(line, path.parent):
            kept[line["id"]] = text
    return kept


def _lines_of(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    return appended_lines(path, {*NOTHING, "id"}, "is not a result of this command")
