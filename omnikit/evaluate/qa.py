"""Question answering: how many answers are right, by kind of question."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omnikit.data.manifest import ENDINGS
from omnikit.data.rows import Row, read_manifest
from omnikit.data.skipped import Skipped
from omnikit.evaluate.batches import Reply, cut_short
from omnikit.evaluate.tables import markdown_table, percent
from omnikit.evaluate.text import Normalizer
from omnikit.strategies import Strategy
from omnikit.tasks import TASKS, Task


@dataclass(frozen=True)
class Way:
    """One way of answering a question."""

    name: str
    task: Task
    strategy: Strategy

    @classmethod
    def of(cls, name: str, options: dict) -> Way:
        """From `{task: A1A2, strategy: <strategy>}`.

        Raises:
            ValueError: no task of that name, or one that answers no question.
        """
        known = [task for task in TASKS.values() if task.text_mark == "answer"]
        task = next((task for task in known if task.name == options["task"]), None)
        if task is None:
            choices = ", ".join(task.name for task in known)
            raise ValueError(f"--ways.{name}.task {options['task']}: answers no question (choices: {choices})")
        return cls(name, task, options["strategy"])


@dataclass(frozen=True)
class Shares:
    """Right answers of one split, given in one way."""

    right: dict[str, int]  # by kind of question
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

    def as_dict(self) -> dict:
        """For JSON."""
        kinds = {k: {"right": self.right[k], "asked": n, "percent": self.percent_of(k)} for k, n in self.asked.items()}
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
    task: Task, rows: Sequence[Row], replies: dict[str, Reply], skipped: Skipped, normalize: Normalizer
) -> Shares:
    """An answer is right if its text is the expected one after normalisation.

    Raises:
        ValueError: no question could be read.
    """
    answered = [row for row in rows if row.id in replies]
    if not answered:
        raise ValueError(f"--splits: no question could be read; skipped: {skipped}")
    right, asked, exact, containing = Counter(), Counter(), 0, 0
    for row in answered:
        text, given, expected = replies[row.id].text, normalize(replies[row.id].text), normalize(row.t2)
        asked[row.kind] += 1
        right[row.kind] += given == expected
        exact += text.strip() == row.t2.strip()
        containing += given == expected or (expected != "" and f" {expected} " in f" {given} ")
    truncated = sum(cut_short(replies[row.id], task) for row in answered)
    return Shares(dict(right), dict(sorted(asked.items())), exact, containing, truncated, skipped)


def write_answers(path: Path, rows: Sequence[Row], replies: dict[str, Reply]) -> None:
    """One line of JSON per answered question."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            if row.id in replies:
                reply = replies[row.id]
                line = {"id": row.id, "kind": row.kind, "question": row.t1, "right": row.t2, "answer": reply.text}
                file.write(json.dumps(line | {"frames": reply.codes.shape[1]}, ensure_ascii=False) + "\n")


def read_questions(folder: Path, split: str, cache_folder: str | Path) -> Sequence[Row]:
    """The rows of `<split>.parquet`, `.csv` or `.json`, whose answers' recordings may stand in `answers.parquet`.

    Raises:
        ValueError: there is no such file, or a row without an expected answer.
    """
    found = [path for ending in ENDINGS if (path := folder / f"{split}{ending}").is_file()]
    answers = folder / "answers.parquet"
    path = found[0] if found else folder / f"{split}.parquet"
    rows = read_manifest(path, cache_folder, answers if answers.is_file() else None)
    without = next((row.id for row in rows if row.t2 is None), None)
    if without is not None:
        raise ValueError(f"manifest {path}: row {without!r} has no answer (t2)")
    return rows


def some(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """All rows, or a part of them that is the same each time."""
    return list(rows) if limit is None or limit >= len(rows) else random.Random(0).sample(list(rows), limit)


def shares_table(results: dict[str, dict[str, Shares]]) -> str:
    """Markdown of split -> way -> shares: one line per split and way, one column per kind of question."""
    kinds = sorted({kind for ways in results.values() for shares in ways.values() for kind in shares.asked})
    rows = []
    for split, ways in results.items():
        for way, shares in ways.items():
            row = [f"{split}, {way}", str(sum(shares.asked.values())), percent(shares.percent)]
            row += [percent(shares.share(n)) for n in (shares.exact, shares.containing, shares.truncated)]
            rows.append(row + [percent(shares.percent_of(kind)) for kind in kinds])
    header = ["Questions, how answered", "Asked", "Right %", "Exact %", "Containing %", "Truncated %"]
    return markdown_table([*header, *(f"{kind} %" for kind in kinds)], rows)
