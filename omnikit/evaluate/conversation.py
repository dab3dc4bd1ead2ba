"""Ask the questions of many dialogs in conversations that run side by side, so that a system answers them in batches.

A conversation is fed the system's own answers, right or wrong.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from omnikit.api import Omni, Reply
from omnikit.audio.reader import Unusable
from omnikit.data.manifest_reader import ManifestEntry
from omnikit.data.skipped import Skipped
from omnikit.evaluate.dialogs import Dialog
from omnikit.generate import END, BadQuestion
from omnikit.tasks import TASKS, Task

REFUSED = "refused"
TOO_SHORT = "answer too short to cut"
"""Reason for which a follow-up about an interrupted answer is not scored."""
QUESTION_PAUSE, TURN_PAUSE = 0.3, 0.7
"""Seconds of silence after a question and after an answer in the recording of a dialog."""


class RememberedTurn(Protocol):
    """A turn as a conversation remembers it."""

    answer: str


class Partner(Protocol):
    """A system in one conversation, see `omnikit.api.Omni.conversation`."""

    @property
    def turns(self) -> Sequence[RememberedTurn]: ...

    def ask(self, audio: Tensor, *, speak: bool) -> Reply: ...

    def say(self, text: str, *, speak: bool) -> Reply: ...

    def crop(self, seconds: float) -> None: ...


Begin = Callable[[str], Partner]
"""A function that begins a conversation for a dialog of this name."""


def conversations(omni: Omni) -> Begin:
    """Return a function that begins conversations with a system; sampled answers depend on the dialog's name."""
    return lambda name: omni.conversation(seed=zlib.crc32(name.encode()))


@dataclass(frozen=True)
class AboutAnswer:
    """A rule for follow-up questions about the answer before, such as `say that again`.

    Args:
        question: regular expression that matches the whole question.
        answer: the right answer, in which `{answer}` stands for the answer before.
    """

    question: str
    answer: str

    def fits(self, entry: ManifestEntry) -> bool:
        """Return whether an entry's question is one of these."""
        return re.fullmatch(self.question, entry.t1) is not None

    def right(self, answer: str) -> str:
        """Return the right answer after a given answer."""
        return self.answer.replace("{answer}", answer)


@dataclass(frozen=True)
class InterviewPlan:
    """Options for asking the questions of dialogs.

    Args:
        follow_ups: regular expression that is searched in `kind`; entries with such a kind are follow-up questions.
            None = all turns of a dialog but the first.
        typed: share of the questions that are typed, although there is a recording; drawn by the entry's id.
        crop: shares of an answer that are heard before it is interrupted, each in a conversation of its own.
        about_answer: rules for follow-up questions about the answer before.
        task: task of the answers: with text as its question all questions are typed, with text as its answer no answer
            is spoken.
    """

    follow_ups: str | None = "^follow"
    typed: float = 0.0
    crop: Sequence[float] = ()
    about_answer: Sequence[AboutAnswer] = ()
    task: Task = TASKS["A1A2"]

    @property
    def speak(self) -> bool:
        """Whether answers are spoken."""
        return self.task.speaks

    def follow_up_questions(self, dialog: Dialog) -> list[ManifestEntry]:
        """Return the turns of a dialog whose questions depend on the turns before."""
        if self.follow_ups is None:
            return list(dialog.turns[1:])
        return [entry for entry in dialog.turns if re.search(self.follow_ups, entry.kind)]

    def is_typed(self, entry: ManifestEntry) -> bool:
        """Return whether an entry's question is typed; one without a recording always is, and all are in some tasks."""
        if self.task.given == "text" or entry.a1 is None:
            return True
        return random.Random(entry.id).random() < self.typed

    def rule(self, entry: ManifestEntry) -> AboutAnswer | None:
        """Return the rule for a follow-up question about the answer before; None for any other question."""
        return next((rule for rule in self.about_answer if rule.fits(entry)), None)


@dataclass(frozen=True)
class Cropped:
    """The answer to a follow-up question after the answer before was interrupted, and the two answers of which one is
    right."""

    reply: Reply
    kept: str  # right by the part that was heard
    whole: str  # right if nothing had been interrupted
    share: float  # of the answer before that was heard


@dataclass
class InterviewAnswers:
    """The answers of a system to the questions of some dialogs, by the ids of the entries."""

    history: dict[str, Reply] = field(default_factory=dict)  # in their conversations
    alone: dict[str, Reply] = field(default_factory=dict)  # follow-ups only, asked as first turns
    cropped: dict[tuple[str, float], Cropped] = field(default_factory=dict)  # follow-ups about a share of an answer
    skipped: Skipped = field(default_factory=Skipped)
    _lock: Lock = field(default_factory=Lock)

    def skip(self, reason: str, entry: ManifestEntry) -> None:
        """Count a question that was not asked, or whose answer cannot be scored; any thread may call it."""
        with self._lock:
            self.skipped.add(reason, entry.id)

    @property
    def truncated(self) -> int:
        """Number of answers in conversations that a limit ended."""
        return sum(reply.end != END for reply in self.history.values())


class Interview:
    """Asks the questions of dialogs with a system.

    Args:
        begin: function that begins a conversation for a dialog's name; any thread may call it.
        sample_rate: sample rate (Hz) at which recordings of questions are loaded.
        plan: what is asked, and how.
        keep_sound: names of the dialogs of which the sound of answers is stored, too.
    """

    def __init__(self, begin: Begin, sample_rate: int, plan: InterviewPlan, keep_sound: Collection[str] = ()):
        self.begin, self.sample_rate, self.plan, self.keep_sound = begin, sample_rate, plan, keep_sound

    def run(self, dialogs: Sequence[Dialog], *, together: int, title: str = "") -> InterviewAnswers:
        """Ask all dialogs, `together` of them at a time, under a progress bar, and return the answers.

        Each dialog is asked whole, each follow-up question also alone, and each follow-up about the answer before also
        after an interruption of that answer. A dialog ends before a question that cannot be asked.
        """
        answers = InterviewAnswers()
        jobs = [job for dialog in dialogs for job in self._jobs(dialog, answers)]
        with ThreadPoolExecutor(together) as pool:
            try:
                found = [pool.submit(job) for job in jobs]
                for each in tqdm(found, desc=title, dynamic_ncols=True):
                    each.result()
            except BaseException:  # Ctrl-C among them
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return answers

    def _jobs(self, dialog: Dialog, answers: InterviewAnswers) -> Iterable[Callable[[], None]]:
        yield lambda: self._whole(dialog, answers)
        for entry in self.plan.follow_up_questions(dialog):
            yield lambda entry=entry: self._alone(dialog, entry, answers)
        for place, entry in enumerate(dialog.turns):
            if place and self.plan.speak and self.plan.rule(entry) is not None:
                for share in self.plan.crop:
                    yield lambda place=place, share=share: self._cropped(dialog, place, share, answers)

    def _whole(self, dialog: Dialog, answers: InterviewAnswers) -> None:
        conversation = self.begin(dialog.name)
        for entry in dialog.turns:
            try:
                reply = self._ask(conversation, entry)
            except (Unusable, BadQuestion) as error:
                answers.skip(getattr(error, "reason", REFUSED), entry)
                return
            answers.history[entry.id] = reply if dialog.name in self.keep_sound else _silent(reply)

    def _alone(self, dialog: Dialog, entry: ManifestEntry, answers: InterviewAnswers) -> None:
        try:
            answers.alone[entry.id] = _silent(self._ask(self.begin(dialog.name), entry))
        except (Unusable, BadQuestion):
            return  # `_whole` counts it

    def _cropped(self, dialog: Dialog, place: int, share: float, answers: InterviewAnswers) -> None:
        """Ask a follow-up question about the answer before, of which a share is heard."""
        conversation, asked = self.begin(dialog.name), dialog.turns[place]
        try:
            for entry in dialog.turns[:place]:
                before = self._ask(conversation, entry)
            if before.wav.numel():
                conversation.crop(share * before.wav.numel() / before.sample_rate)
            kept = conversation.turns[-1].answer
            if not kept.strip() or kept.strip() == before.text.strip():
                answers.skip(TOO_SHORT, asked)
                return
            reply = _silent(self._ask(conversation, asked))
        except (Unusable, BadQuestion):
            return  # `_whole` counts it
        rule = self.plan.rule(asked)
        answers.cropped[asked.id, share] = Cropped(reply, rule.right(kept), rule.right(before.text), share)

    def _ask(self, conversation: Partner, entry: ManifestEntry) -> Reply:
        if self.plan.is_typed(entry):
            return conversation.say(entry.t1, speak=self.plan.speak)
        return conversation.ask(entry.a1.load(self.sample_rate), speak=self.plan.speak)


def _silent(reply: Reply) -> Reply:
    return replace(reply, wav=torch.zeros(0))


def recording(dialog: Dialog, answers: Mapping[str, Reply], plan: InterviewPlan, sample_rate: int) -> Tensor:
    """Return the questions and answers of a dialog as one waveform [N], for listening; typed questions are silent."""
    pieces = []
    for entry in dialog.turns:
        if entry.id in answers:
            asked = torch.zeros(0) if plan.is_typed(entry) else entry.a1.load(sample_rate)
            pieces += [asked, _silence(QUESTION_PAUSE, sample_rate), answers[entry.id].wav.cpu()]
            pieces.append(_silence(TURN_PAUSE, sample_rate))
    return torch.cat(pieces) if pieces else torch.zeros(0)


def _silence(seconds: float, sample_rate: int) -> Tensor:
    return torch.zeros(round(seconds * sample_rate))


def plan_of(hparams: Mapping[str, Any], task: Task) -> InterviewPlan:
    """Return the plan that a recipe's options describe for the answers of a task."""
    rules = [AboutAnswer(rule["question"], rule["answer"]) for rule in hparams["about_answer"]]
    shares = sorted(set(hparams["crop"] or ()))
    return InterviewPlan(hparams["follow_ups"], hparams["typed"], shares, rules, task)
