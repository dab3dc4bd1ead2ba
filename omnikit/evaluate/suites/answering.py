"""Answers to a suite's questions, stored in a folder for each task, and their transcripts by a recogniser.

    answers/<task>/run.json                     what answered, and which questions
    answers/<task>/results*.jsonl, *.wav        answers, as `omnikit ask` writes them (docs/batch.md)
    answers/<task>/transcripts.<judge>*.jsonl   what a recogniser heard in the spoken answers

Each of several processes answers and transcribes its share and writes its own files; all of it is resumed.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from tqdm import tqdm

from omnikit.api import Omni, load
from omnikit.audio.io import load_source
from omnikit.errors import writing
from omnikit.evaluate.intelligibility import Judge
from omnikit.evaluate.suites.items import SuiteItem
from omnikit.files import write_bytes
from omnikit.offline.batch_inference import Job, checkpoint_stamp, read_about, read_results
from omnikit.offline.batches import Respond, by_model, sound
from omnikit.tasks import TASKS, Task
from omnikit.torchrun import Share

ANSWERS = "answers"
"""Name of the folder of stored answers in an output folder."""
TEXT_TO_TEXT, SPEECH_TO_TEXT, SPEECH_TO_SPEECH = "T1T2", "A1T2", "A1A2"
ASKED = (TEXT_TO_TEXT, SPEECH_TO_TEXT, SPEECH_TO_SPEECH)
"""Tasks by which each question is asked and answered: what hearing costs, and what speaking costs."""
FAILURES = ("refused", "too long")
"""Reasons without an answer that are the system's own limits: such questions count as answered with nothing."""
_POLL = 0.5  # seconds between looks at the results of other processes
_RATE = 16000


@dataclass(frozen=True)
class StoredAnswer:
    """A stored answer to one question."""

    text: str
    """Text that was generated; empty if the system could not answer, see `FAILURES`."""
    wav: Path | None = None
    """Recording of a spoken answer; None for written answers, and for spoken ones without audio."""
    heard: str | None = None
    """Transcript of the recording by a recogniser; None = not transcribed."""
    truncated: bool = False
    """Whether a limit ended the answer; a spoken answer with text but no audio counts as truncated."""

    @property
    def scored(self) -> str:
        """Text that scorers get: what a recogniser heard in a spoken answer, or else the generated text."""
        return self.text if self.heard is None else self.heard


class Answerer(Protocol):
    """What answers questions: a system, or a baseline that is scored in its place."""

    sample_rate: int
    """Sample rate of spoken answers in Hz."""

    def respond(self, task: Task, batch_size: int) -> Respond:
        """Return a function that answers a batch of manifest entries; see `omnikit.offline.batches.Respond`."""

    def decode(self, codes: Tensor) -> Tensor:
        """Return the waveform [N] of the codes [K, T] of an answer."""


class SystemAnswerer:
    """An `Answerer` that is an omnikit system."""

    def __init__(self, omni: Omni):
        self.omni, self.sample_rate = omni, omni.sample_rate

    def respond(self, task: Task, batch_size: int) -> Respond:
        """Return a function that answers with the system in batches; see `by_model`."""
        return by_model(self.omni.decoder.with_capacity(batch_size), task)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode the codes [K, T] of an answer by the system's codec."""
        return sound(self.omni.model.codec, codes)


@dataclass(frozen=True)
class Candidate:
    """What is evaluated: how stored answers name it, and how it is opened."""

    about: Mapping[str, Any]
    """What the answers depend on, such as the checkpoint and the time at which its weights were written."""
    open: Callable[[], Answerer]
    """Function that loads it; not called if all answers are stored."""


def system(hparams: Mapping[str, Any], device: str) -> Candidate:
    """Return the omnikit system that a recipe names as a candidate.

    Raises:
        ValueError: there is no such checkpoint.
    """

    def opened() -> SystemAnswerer:
        omni = load(hparams["checkpoint"], device=device, strategy=hparams["strategy"])
        omni.decoding = hparams["decoding"]
        return SystemAnswerer(omni)

    about = checkpoint_stamp(hparams["checkpoint"])
    return Candidate({**about, "strategy": type(hparams["strategy"]).__name__}, opened)


def asked(task: str, items: Sequence[SuiteItem]) -> list[SuiteItem]:
    """Return the questions that can be asked by a task: those with a text, or those with a recording."""
    if TASKS[task].given == "text":
        return [item for item in items if item.question.strip()]
    return [item for item in items if item.audio is not None]


def answer(
    task: str,
    manifest: Path,
    items: Sequence[SuiteItem],
    folder: Path,
    answerer: Callable[[], Answerer],
    *,
    batch_size: int,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Answer this process's share of questions that have no stored answer, and return what the answers depend on.

    Args:
        task: name of the task.
        manifest: manifest of the suite.
        items: questions to answer.
        folder: folder of the answers of this task.
        answerer: function that returns what answers; not called if there is nothing to answer.
        batch_size: number of questions that are answered together.
        about: what the answers depend on besides task and manifest.

    Raises:
        ValueError: the folder has answers that depend on something else, such as another checkpoint.
    """
    chosen = {item.id for item in asked(task, items)}
    about = json.loads(json.dumps({**about}))
    job = Job(
        task, str(manifest), str(folder), batch_size=batch_size, about=about, chosen=chosen, flag="--output_folder"
    )
    done = {name for name, line in read_results(folder).items() if _is_whole(line, folder)}
    if any(entry.id not in done for entry in job.entries):
        found = answerer()
        print(f"{task}: {job.run_with(found.respond(job.task, batch_size), found.decode, found.sample_rate)}")
    return job.about


def _is_whole(line: Mapping[str, Any], folder: Path) -> bool:
    return line["skipped"] is None and (line["wav"] is None or (folder / line["wav"]).is_file())


def wait_for_answers(task: str, items: Sequence[SuiteItem], folder: Path) -> None:
    """Wait until all processes have answered, or skipped, their share of the questions.

    Under torchrun a process that fails ends the others.
    """
    wanted = {item.id for item in asked(task, items)}
    while Share.of_torchrun().processes > 1 and not wanted <= read_results(folder).keys():
        time.sleep(_POLL)


def stored_answers(
    task: str, items: Sequence[SuiteItem], folder: Path, transcripts: Mapping[str, str] | None = None
) -> tuple[dict[str, StoredAnswer], dict[str, str]]:
    """Return the stored answers to questions by id, and why the others have none.

    Args:
        task: name of the task.
        items: the questions.
        folder: folder of the answers of this task.
        transcripts: what a recogniser heard in spoken answers, by id; None = nothing was transcribed.

    Raises:
        ValueError: questions that can be asked by this task have neither an answer nor a reason for having none.
    """
    lines, speaks = read_results(folder), TASKS[task].speaks
    can, found, without = {item.id for item in asked(task, items)}, {}, {}
    missing = [name for name in can if name not in lines]
    if missing:
        raise ValueError(
            f"{folder}: has answers to {len(can) - len(missing)} of {len(can)} questions; "
            "the same command without --rescore goes on"
        )
    for item in items:
        line = lines.get(item.id)
        if item.id not in can:
            without[item.id] = "no text" if TASKS[task].given == "text" else "no recording"
        elif line["skipped"] is None:
            wav = folder / line["wav"] if line["wav"] is not None else None
            cut = bool(line["truncated"]) or (speaks and bool(line["text"]) and wav is None)
            heard = transcripts.get(item.id, "") if speaks and transcripts is not None else None
            found[item.id] = StoredAnswer(line["text"], wav, heard, cut)
        elif line["skipped"].partition(":")[0] in FAILURES:
            found[item.id] = StoredAnswer("", heard="" if speaks and transcripts is not None else None)
        else:
            without[item.id] = line["skipped"].partition(":")[0]
    return found, without


def stored_about(folder: Path) -> dict[str, Any]:
    """Return what stored answers depend on.

    Raises:
        ValueError: there are none.
    """
    about = read_about(folder, "--output_folder")
    if about is None:
        raise ValueError(f"--rescore: no answers are stored in {folder}; run without it first")
    return about


class Transcripts:
    """Transcripts of the spoken answers of one task by one recogniser, in files beside the answers.

    A transcript belongs to the bytes of its recording, so that it is made again for another answer, and only then.

    Args:
        folder: folder of the answers.
        name: name of the recogniser with its weights, which is part of the files' names.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.share = folder, Share.of_torchrun()
        safe = re.sub(r"[^\w.-]+", "_", name)[-60:]
        self.stem = f"transcripts.{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def make(self, judge: Callable[[], Judge], ids: Collection[str]) -> None:
        """Transcribe this process's share of the spoken answers to questions that have no transcript yet.

        Args:
            judge: function that returns the recogniser; not called if there is nothing to transcribe.
            ids: ids of the questions.
        """
        wavs = self._wavs(ids)
        stored = self._stored()
        own = list(wavs.items())[self.share.rank :: self.share.processes]
        missing = [(name, wav, digest) for name, (wav, digest) in own if (name, digest) not in stored]
        if not missing:
            return
        recogniser = judge()
        self._repair()
        for name, wav, digest in tqdm(missing, desc="transcripts", dynamic_ncols=True, disable=self.share.rank > 0):
            heard = recogniser.transcribe(load_source(str(wav), str(wav), _RATE), _RATE)
            self._write({"id": name, "wav": digest, "heard": heard})

    def wait(self, ids: Collection[str]) -> dict[str, str]:
        """Wait until all processes have transcribed their share, and return the transcripts by id of the question."""
        wavs = self._wavs(ids)
        while True:
            stored = self._stored()
            found = {name: stored.get((name, digest)) for name, (_, digest) in wavs.items()}
            if None not in found.values():
                return found
            if self.share.processes == 1:
                raise ValueError(f"{self.folder}: spoken answers changed while they were transcribed; start again")
            time.sleep(_POLL)

    @property
    def _own_file(self) -> Path:
        return self.folder / (f"{self.stem}.{self.share.rank}.jsonl" if self.share.rank else f"{self.stem}.jsonl")

    def _wavs(self, ids: Collection[str]) -> dict[str, tuple[Path, str]]:
        """Return path and digest of each spoken answer by id of the question, in the order of the ids."""
        lines = read_results(self.folder)
        names = {name: lines[name]["wav"] for name in sorted(ids) if name in lines and lines[name]["wav"] is not None}
        paths = {name: self.folder / wav for name, wav in names.items()}
        return {name: (path, hashlib.sha256(path.read_bytes()).hexdigest()[:16]) for name, path in paths.items()}

    def _stored(self) -> dict[tuple[str, str], str]:
        found = {}
        for path in sorted(self.folder.glob(f"{self.stem}*.jsonl")):
            for line, _ in _whole_lines(path):
                found[line["id"], line["wav"]] = line["heard"]
        return found

    def _repair(self) -> None:
        """Remove a truncated last line, which a killed process has left, from this process's file."""
        if self._own_file.is_file():
            write_bytes(self._own_file, b"".join(text for _, text in _whole_lines(self._own_file)))

    def _write(self, line: Mapping[str, Any]) -> None:
        with writing(self._own_file), self._own_file.open("ab") as file:
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def _whole_lines(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not text.endswith(b"\n"):
            return
        try:
            line = json.loads(text)
            complete = {"id", "wav", "heard"} <= line.keys()
        except (ValueError, AttributeError):
            complete = False
        if not complete:
            raise ValueError(f"{path}: line {number} is no transcript of this command")
        yield line, text
