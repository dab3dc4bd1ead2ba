"""Evaluate question answering: the share of right answers, by kind of question."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omnikit.data.manifest_reader import ManifestEntry
from omnikit.data.skipped import Skipped
from omnikit.data.sources import read_entries
from omnikit.evaluate.result_tables import markdown_table, percent
from omnikit.evaluate.text_normalisation import Normalizer, is_unspaced, of_language
from omnikit.files import whole_text
from omnikit.hparams import build_part
from omnikit.offline.batches import DecodedAnswer, cut_short
from omnikit.strategies import Strategy
from omnikit.tasks import TASKS, Task

Item = TypeVar("Item")


@dataclass(frozen=True)
class AnswerMode:
    """An answer mode: a named combination of a task and a decoding strategy with which questions are answered."""

    name: str
    task: Task
    strategy: Strategy

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any]) -> AnswerMode:
        """Build an answer mode from its name and options such as `{task: A1A2, strategy: batch_parallel}`.

        The strategy is an object or a name; without one it is `parallel`.

        Raises:
            ValueError: the task is missing, unknown, or does not answer questions; there is no such strategy or option.
        """
        flag, known = f"--answer_modes.{name}", [task for task in TASKS.values() if task.text_mark == "answer"]
        if not isinstance(options, Mapping) or not {"task"} <= set(options) <= {"task", "strategy"}:
            raise ValueError(f"{flag} {options}: must be a mapping with a task and, unless it is parallel, a strategy")
        task = next((task for task in known if task.name == options["task"]), None)
        if task is None:
            choices = ", ".join(task.name for task in known)
            raise ValueError(f"{flag}.task {options['task']}: answers no question (choices: {choices})")
        strategy = options.get("strategy", "parallel")
        return cls(name, task, strategy if isinstance(strategy, Strategy) else build_part("strategy", str(strategy)))

    @classmethod
    def all_of(cls, given: Mapping[str, Mapping[str, Any]]) -> list[AnswerMode]:
        """Build the answer modes of a recipe from its option `answer_modes`, which maps names to options as in `of`.

        A name with `None` in place of the options is left out.

        Raises:
            ValueError: there is none; see also `of`.
        """
        wanted = {name: each for name, each in given.items() if each is not None} if isinstance(given, Mapping) else {}
        if not wanted:
            raise ValueError(f"--answer_modes {given}: must map one or more names to a task and a strategy")
        return [cls.of(str(name), options) for name, options in wanted.items()]


@dataclass(frozen=True)
class QAScores:
    """Numbers of right answers to the questions of one split in one answer mode."""

    right: dict[str, int]  # kind of question -> number of right answers; "" where the manifest names no kind
    asked: dict[str, int]  # kind of question -> number of questions
    exact: int  # answers that are right without normalisation
    containing: int  # answers that are right, or contain a right answer as consecutive words
    truncated: int  # answers that are truncated, see `cut_short`
    skipped: Skipped

    @property
    def percent(self) -> float:
        """Percentage of all questions that were answered right."""
        return self.share(sum(self.right.values()))

    def share(self, count: int) -> float:
        """Return a number of questions as a percentage of all questions."""
        return 100 * count / sum(self.asked.values())

    def percent_of(self, kind: str) -> float | None:
        """Return the percentage of the questions of one kind that were answered right; None if there are none."""
        return 100 * self.right[kind] / self.asked[kind] if self.asked.get(kind) else None

    @property
    def kinds(self) -> list[str]:
        """Kinds of question that occur in the manifest; questions without a kind are not listed."""
        return [kind for kind in self.asked if kind]

    def as_dict(self) -> dict:
        """Return the numbers and percentages of right answers as a dictionary for JSON."""
        kinds = {k: {"right": self.right[k], "asked": self.asked[k], "percent": self.percent_of(k)} for k in self.kinds}
        return {
            "percent": self.percent,
            "exact_percent": self.share(self.exact),
            "containing_percent": self.share(self.containing),
            "truncated_percent": self.share(self.truncated),
            "asked": sum(self.asked.values()),
            "kinds": kinds,
            "truncated": self.truncated,
            "skipped": dict(self.skipped.reasons),
        }


def count_right(
    task: Task,
    entries: Sequence[ManifestEntry],
    replies: dict[str, DecodedAnswer],
    skipped: Skipped,
    normalize: Normalizer,
    language: str | None = None,
) -> QAScores:
    """Count the right answers to the questions of manifest entries.

    Args:
        task: task of the answers.
        entries: manifest entries of the questions.
        replies: answers by the entries' ids.
        skipped: entries without an answer, which the result holds.
        normalize: text normalisation of answers and references.
        language: language of the entries that name none; None = unknown.

    Raises:
        ValueError: no question could be read.
    """
    answered = [entry for entry in entries if entry.id in replies]
    if not answered:
        raise ValueError(f"sources: no question could be read; skipped: {skipped}")
    right, asked, exact, containing = Counter(), Counter(), 0, 0
    for entry in answered:
        text, wanted, spoken = replies[entry.id].text, entry.reference_answers(), entry.language or language or ""
        matches = is_right(text, wanted, of_language(normalize, spoken))
        asked[entry.kind] += 1
        right[entry.kind] += matches
        exact += _is_exact(text, wanted)
        containing += matches or contains_one(text, wanted, normalize, spoken)
    truncated = sum(cut_short(replies[entry.id], task) for entry in answered)
    return QAScores(dict(right), dict(sorted(asked.items())), exact, containing, truncated, skipped)


def is_right(text: str, wanted: Sequence[str], normalize: Normalizer) -> bool:
    """Return whether the normalised text of an answer equals one of the normalised reference answers.

    References that normalisation leaves empty, such as `...`, have to be matched without normalisation.
    """
    return _is_exact(text, wanted) or normalize(text) in _normalized(wanted, normalize)


def contains_one(text: str, wanted: Sequence[str], normalize: Normalizer, language: str = "") -> bool:
    """Return whether the normalised text of an answer contains one of the reference answers, as consecutive words.

    In a language without spaces between words, it contains a reference as consecutive characters.
    """
    own = of_language(normalize, language)
    given, references = own(text), _normalized(wanted, own)
    if is_unspaced(language):
        return any("".join(each.split()) in "".join(given.split()) for each in references)
    return any(f" {each} " in f" {given} " for each in references)


def normalized_references(entry: ManifestEntry, normalize: Normalizer) -> list[str]:
    """Return the normalised reference answers of an entry, each once, without those that normalisation leaves empty."""
    return _normalized(entry.reference_answers(), of_language(normalize, entry.language))


def _normalized(texts: Sequence[str], normalize: Normalizer) -> list[str]:
    return [text for text in dict.fromkeys(map(normalize, texts)) if text]


def _is_exact(text: str, wanted: Sequence[str]) -> bool:
    return text.strip() in [each.strip() for each in wanted]


def write_answers(path: Path, entries: Sequence[ManifestEntry], replies: dict[str, DecodedAnswer]) -> None:
    """Write the answered questions to a file as lines of JSON with question, reference answers and answer."""
    with whole_text(path) as file:
        for entry in entries:
            if entry.id in replies:
                reply = replies[entry.id]
                asked = {"id": entry.id, "kind": entry.kind, "question": entry.t1, "right": entry.reference_answers()}
                given = {"answer": reply.text, "frames": reply.codes.shape[1]}
                file.write(json.dumps(asked | given, ensure_ascii=False) + "\n")


def chosen_sources(
    sources: Mapping[str, dict[str, Any] | None], splits: Sequence[str] | None
) -> dict[str, dict[str, Any]]:
    """Return the options of the sources to score, by name.

    Args:
        sources: options of all sources by name; None for a disabled source.
        splits: names of the sources to score; None = all.

    Raises:
        ValueError: there is no source, or none with one of these names.
    """
    there = {name: options for name, options in sources.items() if options is not None}
    names = list(there) if splits is None else list(dict.fromkeys(splits))
    unknown = [name for name in names if name not in there]
    if unknown or not names:
        raise ValueError(f"--splits {', '.join(unknown) or names}: no such source (choices: {', '.join(there)})")
    return {name: there[name] for name in names}


def read_questions(name: str, options: dict[str, Any], cache_folder: str | Path) -> Sequence[ManifestEntry]:
    """Read the questions of a source and refuse entries without a reference answer; see `read_entries`.

    Raises:
        ValueError: the source cannot be read, or an entry has no reference answer.
    """
    entries = read_entries(name, options, cache_folder)
    without = next((entry.id for entry in entries if not entry.reference_answers()), None)
    if without is not None:
        raise ValueError(f"manifest {options['manifest']}: entry {without!r} has no answer (t2 or accepted)")
    return entries


def some(items: Sequence[Item], limit: int | None) -> list[Item]:
    """Return `limit` items drawn at random with a fixed seed; all items if there are no more or `limit` is None."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i] for i in random.Random(0).sample(range(len(items)), limit)]


def qa_table(results: dict[str, dict[str, QAScores]]) -> str:
    """Return QA scores, by split and answer mode, as a Markdown table with a line for each of them.

    It has a column for each kind of question.
    """
    kinds = sorted({kind for modes in results.values() for scores in modes.values() for kind in scores.kinds})
    rows = []
    for split, modes in results.items():
        for mode, scores in modes.items():
            row = [f"{split}, {mode}", str(sum(scores.asked.values())), percent(scores.percent)]
            row += [percent(scores.share(n)) for n in (scores.exact, scores.containing, scores.truncated)]
            rows.append(row + [percent(scores.percent_of(kind)) for kind in kinds])
    header = ["Questions, how answered", "Asked", "Right %", "Exact %", "Containing %", "Truncated %"]
    return markdown_table([*header, *(f"{kind} %" for kind in kinds)], rows)
