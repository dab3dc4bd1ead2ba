"""Question answering: how many answers are right, by kind of question."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnikit.data.manifest_reader import ManifestEntry
from omnikit.data.skipped import Skipped
from omnikit.data.sources import read_entries
from omnikit.evaluate.result_tables import markdown_table, percent
from omnikit.evaluate.text_normalisation import Normalizer
from omnikit.files import whole_text
from omnikit.offline.batches import DecodedAnswer, cut_short
from omnikit.strategies import Strategy
from omnikit.tasks import TASKS, Task


@dataclass(frozen=True)
class AnswerMode:
    """One way of answering a question."""

    name: str
    task: Task
    strategy: Strategy

    @classmethod
    def of(cls, name: str, options: dict) -> AnswerMode:
        """From `{task: A1A2, strategy: <strategy>}`.

        Raises:
            ValueError: no task of that name, or one that answers no question.
        """
        known = [task for task in TASKS.values() if task.text_mark == "answer"]
        task = next((task for task in known if task.name == options["task"]), None)
        if task is None:
            choices = ", ".join(task.name for task in known)
            raise ValueError(f"--answer_modes.{name}.task {options['task']}: answers no question (choices: {choices})")
        return cls(name, task, options["strategy"])


@dataclass(frozen=True)
class QAScores:
    """Right answers of one split, given in one way."""

    right: dict[str, int]  # by kind of question; "" where the manifest names none
    asked: dict[str, int]
    exact: int  # right letter by letter
    containing: int  # right, or with the expected words one after the other somewhere in them
    truncated: int  # see `cut_short`
    skipped: Skipped

    @property
    def percent(self) -> float:
        """Of all questions."""
        return self.share(sum(self.right.values()))

    def share(self, count: int) -> float:
        """Percent of all questions."""
        return 100 * count / sum(self.asked.values())

    def percent_of(self, kind: str) -> float | None:
        """Of the questions of one kind; None if there is none."""
        return 100 * self.right[kind] / self.asked[kind] if self.asked.get(kind) else None

    @property
    def kinds(self) -> list[str]:
        """Those that the manifest names."""
        return [kind for kind in self.asked if kind]

    def as_dict(self) -> dict:
        """For JSON."""
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
) -> QAScores:
    """An answer is right if its text is, after normalisation, one of those that the row accepts. Where nothing is left
    of a text by that (`...`), only the same text is right.

    Raises:
        ValueError: no question could be read.
    """
    answered = [entry for entry in entries if entry.id in replies]
    if not answered:
        raise ValueError(f"sources: no question could be read; skipped: {skipped}")
    right, asked, exact, containing = Counter(), Counter(), 0, 0
    for entry in answered:
        text, wanted = replies[entry.id].text, entry.reference_answers()
        given, expected = normalize(text), {normalize(each) for each in wanted} - {""}
        same = text.strip() in [each.strip() for each in wanted]
        matches = same or given in expected
        asked[entry.kind] += 1
        right[entry.kind] += matches
        exact += same
        containing += matches or any(f" {each} " in f" {given} " for each in expected)
    truncated = sum(cut_short(replies[entry.id], task) for entry in answered)
    return QAScores(dict(right), dict(sorted(asked.items())), exact, containing, truncated, skipped)


def write_answers(path: Path, entries: Sequence[ManifestEntry], replies: dict[str, DecodedAnswer]) -> None:
    """One line of JSON per answered question."""
    with whole_text(path) as file:
        for entry in entries:
            if entry.id in replies:
                reply = replies[entry.id]
                asked = {"id": entry.id, "kind": entry.kind, "question": entry.t1, "right": entry.reference_answers()}
                given = {"answer": reply.text, "frames": reply.codes.shape[1]}
                file.write(json.dumps(asked | given, ensure_ascii=False) + "\n")


def read_questions(name: str, options: dict[str, Any], cache_folder: str | Path) -> Sequence[ManifestEntry]:
    """The rows of a source, see `read_entries`.

    Raises:
        ValueError: the source cannot be read, or a row has no answer that would be right.
    """
    entries = read_entries(name, options, cache_folder)
    without = next((entry.id for entry in entries if not entry.reference_answers()), None)
    if without is not None:
        raise ValueError(f"manifest {options['manifest']}: entry {without!r} has no answer (t2 or accepted)")
    return entries


def some(entries: Sequence[ManifestEntry], limit: int | None) -> list[ManifestEntry]:
    """All rows, or a part of them that is the same each time."""
    if limit is None or limit >= len(entries):
        return list(entries)
    return [entries[i] for i in random.Random(0).sample(range(len(entries)), limit)]


def qa_table(results: dict[str, dict[str, QAScores]]) -> str:
    """Markdown of split -> way -> shares: one line per split and way, one column per kind of question."""
    kinds = sorted({kind for ways in results.values() for shares in ways.values() for kind in shares.kinds})
    rows = []
    for split, ways in results.items():
        for way, shares in ways.items():
            row = [f"{split}, {way}", str(sum(shares.asked.values())), percent(shares.percent)]
            row += [percent(shares.share(n)) for n in (shares.exact, shares.containing, shares.truncated)]
            rows.append(row + [percent(shares.percent_of(kind)) for kind in kinds])
    header = ["Questions, how answered", "Asked", "Right %", "Exact %", "Containing %", "Truncated %"]
    return markdown_table([*header, *(f"{kind} %" for kind in kinds)], rows)
