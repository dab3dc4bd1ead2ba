"""Answers to a suite's questions by a system or a baseline, stored in a folder for each task.

    answers/<task>/run.json                     what answered, and which questions
    answers/<task>/results*.jsonl, *.wav        answers, as `omnikit ask` writes them (docs/batch.md)

Each of several processes answers its share and writes its own files; an interrupted run is resumed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from omnikit.api import Omni, load
from omnikit.audio.io import MAX_SECONDS
from omnikit.data.manifest_reader import ManifestEntry
from omnikit.evaluate.suites.dialog_answers import by_conversations, waveform
from omnikit.evaluate.suites.items import SuiteItem
from omnikit.evaluate.suites.stored_outputs import POLL
from omnikit.offline.batch_inference import Job, checkpoint_stamp, is_finished, read_about, read_results
from omnikit.offline.batches import Respond, by_model, sound
from omnikit.tasks import TASKS, Task
from omnikit.torchrun import Share

ANSWERS = "answers"
"""Name of the folder of stored answers in an output folder."""
TEXT_TO_TEXT, SPEECH_TO_TEXT, SPEECH_TO_SPEECH = "T1T2", "A1T2", "A1A2"
ASKED = (TEXT_TO_TEXT, SPEECH_TO_TEXT, SPEECH_TO_SPEECH)
"""Tasks by which each question is asked; their differences are what hearing the question and speaking the answer cost.
"""
FAILURES = ("refused", "too long")
"""Reasons in stored results that are limits of the system: such a question is scored as answered with nothing."""


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
        """Text that is scored: the transcript of a spoken answer if there is one, or else the generated text."""
        return self.text if self.heard is None else self.heard


class Answerer(Protocol):
    """A thing that answers questions: a system, or a baseline that is scored in its place."""

    sample_rate: int
    """Sample rate of spoken answers in Hz."""
    max_seconds: float | None
    """Maximum length of a spoken question in seconds; None = as long as recordings may be."""

    def respond(self, task: Task, batch_size: int) -> Respond:
        """Return a function that answers a batch of manifest entries; see `omnikit.offline.batches.Respond`."""

    def converse(self, task: Task, entries: Sequence[ManifestEntry]) -> Respond:
        """Return a function that answers the rounds of conversations, of which `entries` are all.

        In place of codes its answers have their waveform, see `dialog_answers.waveform`.
        """

    def decode(self, codes: Tensor) -> Tensor:
        """Return the waveform [N] of the codes [K, T] of an answer."""


class SystemAnswerer:
    """An `Answerer` that is an omnikit system."""

    max_seconds = MAX_SECONDS

    def __init__(self, omni: Omni):
        self.omni, self.sample_rate = omni, omni.sample_rate

    def respond(self, task: Task, batch_size: int) -> Respond:
        """Return a function that answers with the system in batches; see `by_model`."""
        return by_model(self.omni.decoder.with_capacity(batch_size), task)

    def converse(self, task: Task, entries: Sequence[ManifestEntry]) -> Respond:
        """Return a function that answers the rounds of conversations; see `by_conversations`."""
        return by_conversations(self.omni, task, entries)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode the codes [K, T] of an answer by the system's codec."""
        return sound(self.omni.model.codec, codes)


@dataclass(frozen=True)
class Candidate:
    """A system or baseline to be evaluated: how stored answers name it, and how it is opened."""

    about: Mapping[str, Any]
    """Entries that the answers depend on, such as the checkpoint and the time at which its weights were written."""
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

    options = {"strategy": asdict(hparams["strategy"]), "decoding": asdict(hparams["decoding"])}
    return Candidate({**checkpoint_stamp(hparams["checkpoint"]), **options}, opened)


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

    Questions that are rounds of conversations are asked after the others.

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
    can = asked(task, items)
    alone, rounds = ({item.id for item in can if bool(item.dialog) is in_rounds} for in_rounds in (False, True))
    for chosen in (alone, rounds) if rounds else (alone,):
        job = Job(
            task, str(manifest), str(folder),
            batch_size=batch_size, about=as_stored(about), chosen=chosen, flag="--output_folder",
        )  # fmt: skip
        done = {name for name, line in read_results(folder).items() if is_finished(line, folder)}
        if any(entry.id not in done for entry in job.entries):
            found = answerer()
            respond, decode = _ways(found, job, batch_size, in_rounds=chosen is rounds)
            counts = job.run_with(respond, decode, found.sample_rate, max_seconds=found.max_seconds)
            print(f"{task}: {counts}", file=sys.stderr)
    return job.about


def _ways(
    found: Answerer, job: Job, batch_size: int, *, in_rounds: bool
) -> tuple[Respond, Callable[[Tensor], Tensor]]:
    """Return the functions that answer the entries of a job and that decode the answers to waveforms."""
    if not in_rounds:
        return found.respond(job.task, batch_size), found.decode
    return found.converse(job.task, job.entries), waveform


def as_stored(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what answers depend on as JSON gives it back, with lists for tuples."""
    return json.loads(json.dumps(dict(about)))


def wait_for_answers(task: str, items: Sequence[SuiteItem], folder: Path) -> None:
    """Wait until all processes have answered, or skipped, their share of the questions.

    Under torchrun a process that fails ends the others.
    """
    wanted = {item.id for item in asked(task, items)}
    while Share.of_torchrun().processes > 1 and not wanted <= read_results(folder).keys():
        time.sleep(POLL)


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
