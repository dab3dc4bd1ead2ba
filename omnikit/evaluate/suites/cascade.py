"""Baselines of three parts, one after the other: a recogniser, a text language model and a speech synthesizer.

A cascade answers the questions of a suite in place of an omnikit system: what is heard is the recogniser's transcript,
what is answered is the language model's text, and what is spoken is the voice's speech of that text. Its answers are
stored and scored like those of a system, so its gaps of hearing and speaking are those of recogniser and voice alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnikit.data.manifest_reader import ManifestEntry
from omnikit.evaluate.baseline_llms import BaselineLLM
from omnikit.evaluate.baseline_recognisers import Recogniser, by_recogniser, check_baseline, open_baseline
from omnikit.evaluate.conversation import REFUSED
from omnikit.evaluate.suites.answering import Candidate
from omnikit.evaluate.suites.dialog_answers import by_dialog
from omnikit.hub import is_hub_id
from omnikit.offline.batches import DecodedAnswer, Problem, Replied, Respond
from omnikit.prepare.voices import Voice, open_voice
from omnikit.tasks import Task

VOICE = "espeak"
"""Name of the voice that speaks the answers of a cascade."""
NO_SOUND = torch.zeros(1, 0)
AFTER_PROBLEM = Problem(REFUSED, "a round before it has no answer")
Asked = tuple[ManifestEntry, tuple[int, ...]]
"""A manifest entry and the ids of the prompt that the language model is given for its question."""


class Cascade:
    """A recogniser, a language model and a voice that answer like one system; an `Answerer`.

    The codes of a spoken answer are its samples, in one codebook: [1, N].

    Args:
        recogniser: recogniser that transcribes spoken questions.
        llm: language model that answers transcripts and written questions.
        voice: voice that speaks the answers.
    """

    max_seconds: float | None = None
    """Maximum length of a question in seconds; None = as long as recordings may be."""

    def __init__(self, recogniser: Recogniser, llm: BaselineLLM, voice: Voice):
        self.recogniser, self.llm, self.voice = recogniser, llm, voice
        self.sample_rate = voice.sample_rate
        self.transcripts: dict[str, DecodedAnswer | Problem] = {}  # entry's id -> transcript; two tasks hear the same
        self.known: dict[tuple[int, ...], tuple[str, bool]] = {}  # prompt -> answer; two tasks ask the same questions

    def respond(self, task: Task, batch_size: int) -> Respond:
        """Return a function that answers batches of manifest entries, with speech if the task speaks."""

        def respond(entries: list[ManifestEntry]) -> Replied:
            asked, problems = self._prompted(self._questions(task, entries))
            yield from problems
            for entry, (text, truncated) in self._answered(asked):
                codes = self._spoken(text, entry.language) if task.speaks else NO_SOUND
                yield entry, DecodedAnswer(text, codes, truncated)

        return respond

    def converse(self, task: Task, entries: Sequence[ManifestEntry]) -> Respond:
        """Return a function that answers the rounds of conversations, each with the rounds before it.

        Args:
            task: task of the answers.
            entries: all rounds of all conversations.
        """
        rounds = by_dialog(entries)
        held: dict[str, DecodedAnswer | Problem] = {}

        def respond(batch: list[ManifestEntry]) -> Replied:
            for entry in batch:
                if entry.id not in held:
                    held.update(self._held(task, rounds[entry.dialog]))
                yield entry, held.pop(entry.id)  # its waveform is not needed any more

        return respond

    def _held(self, task: Task, rounds: list[ManifestEntry]) -> dict[str, DecodedAnswer | Problem]:
        """Return the answers to the rounds of one conversation by id; after a problem there are no more answers."""
        before: list[tuple[str, str]] = []
        found: dict[str, DecodedAnswer | Problem] = {entry.id: AFTER_PROBLEM for entry in rounds}
        for entry in rounds:
            ((_, question),) = self._questions(task, [entry])
            asked, problems = self._prompted([(entry, question)], before)
            if problems:
                found[entry.id] = problems[0][1]
                break
            ((_, (text, truncated)),) = self._answered(asked)
            codes = self._spoken(text, entry.language) if task.speaks else NO_SOUND
            found[entry.id] = DecodedAnswer(text, codes, truncated)
            before.append((question.text, text))
        return found

    def decode(self, codes: Tensor) -> Tensor:
        """Return the waveform [N] of the codes [1, N] of an answer, which are its samples."""
        return codes[0]

    def _questions(self, task: Task, entries: list[ManifestEntry]) -> Replied:
        """Return entries with their questions, as read or as transcribed, or with a problem."""
        if task.given == "speech":
            new = [entry for entry in entries if entry.id not in self.transcripts]
            self.transcripts.update((entry.id, found) for entry, found in by_recogniser(self.recogniser)(new))
            return [(entry, self.transcripts[entry.id]) for entry in entries]
        return [(entry, DecodedAnswer(entry.t1, NO_SOUND)) for entry in entries]

    def _prompted(
        self, questions: Replied, before: Sequence[tuple[str, str]] = ()
    ) -> tuple[list[Asked], list[tuple[ManifestEntry, Problem]]]:
        """Return entries with the prompts of their questions, and those with a problem."""
        asked, problems = [], []
        for entry, found in questions:
            if isinstance(found, Problem):
                problems.append((entry, found))
                continue
            try:
                asked.append((entry, tuple(self.llm.prompt(found.text, before))))
            except ValueError as error:  # longer than the language model's positions
                problems.append((entry, Problem(REFUSED, str(error))))
        return asked, problems

    def _answered(self, asked: Sequence[Asked]) -> list[tuple[ManifestEntry, tuple[str, bool]]]:
        new = sorted({prompt for _, prompt in asked if prompt not in self.known})
        if new:
            for prompt, answer in zip(new, self.llm.answer(new), strict=True):
                self.known[prompt] = answer.text, answer.truncated
        return [(entry, self.known[prompt]) for entry, prompt in asked]

    def _spoken(self, text: str, language: str) -> Tensor:
        """Return the samples [1, N] of the speech of a text; N = 0 if the voice cannot speak it."""
        try:
            wav = self.voice.synthesize(text, language=language)
        except ValueError:  # no words, or a language that the voice lacks
            return NO_SOUND
        return torch.from_numpy(wav)[None]


def cascade(hparams: Mapping[str, Any], device: str) -> Candidate:
    """Return the cascade that a recipe names by `baseline`, `baseline_weights` and `baseline_llm` as a candidate.

    Raises:
        ValueError: the recogniser is unknown, there is no language model, or a checkpoint is given, too.
    """
    name, weights, llm = hparams["baseline"], hparams["baseline_weights"], hparams["baseline_llm"]
    check_baseline(name, hparams["checkpoint"])
    if llm is None:
        raise ValueError(f"--baseline {name}: only transcribes; give the language model that answers, --baseline_llm")

    def opened() -> Cascade:
        recogniser = open_baseline(name, weights, device)
        return Cascade(recogniser, BaselineLLM(llm, device, hparams["baseline_tokens"]), open_voice(VOICE))

    about = {"baseline": name, "baseline_weights": _stamp(weights), "baseline_llm": _stamp(llm)}
    return Candidate({**about, "baseline_tokens": hparams["baseline_tokens"], "baseline_voice": VOICE}, opened)


def _stamp(weights: str | None) -> str | None:
    """Return what identifies weights: a hub id, or a path with the time in ns at which its newest file was written."""
    if weights is None or is_hub_id(weights):
        return weights
    path = Path(weights)
    files = [path, *(path.iterdir() if path.is_dir() else [])]
    newest = max((file.stat().st_mtime_ns for file in files if file.is_file()), default=None)
    return str(path.resolve()) if newest is None else f"{path.resolve()}, written {newest}"
