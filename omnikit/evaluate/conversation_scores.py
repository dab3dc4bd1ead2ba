"""Score conversations: right answers with and without the turns before, and after an interrupted answer."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omnikit.data.manifest_reader import ManifestEntry
from omnikit.evaluate.conversation import Answers, InterviewPlan
from omnikit.evaluate.dialogs import Dialog
from omnikit.evaluate.qa import is_right, normalized_references
from omnikit.evaluate.result_tables import markdown_table, percent
from omnikit.evaluate.text_normalisation import Normalizer
from omnikit.files import whole_text

FOLLOW_UPS = "all follow-ups"
"""Name of the row of a table that counts all follow-up questions."""


@dataclass(frozen=True)
class Score:
    """Number of right answers to some questions."""

    right: int = 0
    asked: int = 0

    @property
    def percent(self) -> float | None:
        """Percentage of the questions that were answered right; None if there are none."""
        return 100 * self.right / self.asked if self.asked else None

    def __add__(self, other: Score) -> Score:
        return Score(self.right + other.right, self.asked + other.asked)

    def as_dict(self) -> dict[str, float | None]:
        """Return numbers and percentage as a dictionary for JSON."""
        return {"right": self.right, "asked": self.asked, "percent": self.percent}


@dataclass(frozen=True)
class KindScores:
    """Scores of one kind of question, or of all follow-up questions."""

    history: Score  # in the conversation
    alone: Score  # as the first turn, without the turns before; none for questions that are no follow-ups
    frequent_of_text: Score  # if each text of a question had its most frequent reference answer
    frequent_of_kind: Score  # if each kind of question had its most frequent reference answer
    cropped: Score  # right by the part that was heard of an interrupted answer
    uncropped: Score  # right by the whole of that answer, as if it had not been interrupted

    def __add__(self, other: KindScores) -> KindScores:
        return KindScores(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def as_dict(self) -> dict[str, dict]:
        """Return all scores as a dictionary for JSON."""
        return {name: share.as_dict() for name, share in vars(self).items()}


NONE = KindScores(*[Score()] * 6)


@dataclass(frozen=True)
class ConversationScores:
    """Scores of the conversations of one split in one answer mode."""

    kinds: dict[str, KindScores]  # kind of question -> its scores
    follow_ups: KindScores  # all follow-up questions
    dialogs: int
    typed: int  # questions that were typed
    truncated: int  # answers that a limit ended
    skipped: dict[str, int]  # reason -> questions that were not asked

    def as_dict(self) -> dict:
        """Return the scores as a dictionary for JSON."""
        counts = {name: getattr(self, name) for name in ("dialogs", "typed", "truncated", "skipped")}
        kinds = {kind: scores.as_dict() for kind, scores in self.kinds.items()}
        return {**counts, "follow_ups": self.follow_ups.as_dict(), "kinds": kinds}


def score(
    dialogs: Sequence[Dialog], answers: Answers, plan: InterviewPlan, normalize: Normalizer
) -> ConversationScores:
    """Compare the answers of conversations with the reference answers of the manifest entries.

    The answer after an interruption is compared with the part that was heard, see `AboutAnswer`.

    Raises:
        ValueError: no question could be asked.
    """
    entries = [entry for dialog in dialogs for entry in dialog.turns if entry.id in answers.history]
    if not entries:
        raise ValueError(f"sources: no question of a dialog could be asked; skipped: {answers.skipped}")
    follow_ups = [entry for entry in entries if plan.is_follow_up(entry)]
    by_text = _most_frequent(follow_ups, lambda entry: normalize(entry.t1), normalize)
    by_kind = _most_frequent(follow_ups, lambda entry: entry.kind, normalize)
    kinds: dict[str, KindScores] = defaultdict(lambda: NONE)
    for entry in entries:
        kinds[entry.kind] += KindScores(
            _right(entry, answers.history, normalize),
            _right(entry, answers.alone, normalize),
            by_text.get(entry.id, Score()),
            by_kind.get(entry.id, Score()),
            *_after_crop(entry, answers, normalize),
        )
    total = sum((kinds[kind] for kind in {entry.kind for entry in follow_ups}), NONE)
    typed = sum(plan.is_typed(entry) for entry in entries)
    skipped = dict(answers.skipped.reasons)
    return ConversationScores(dict(sorted(kinds.items())), total, len(dialogs), typed, answers.truncated, skipped)


def _right(entry: ManifestEntry, replies: Mapping[str, object], normalize: Normalizer) -> Score:
    if entry.id not in replies:
        return Score()
    return Score(is_right(replies[entry.id].text, entry.reference_answers(), normalize), 1)


def _after_crop(entry: ManifestEntry, answers: Answers, normalize: Normalizer) -> tuple[Score, Score]:
    found = answers.cropped.get(entry.id)
    if found is None:
        return Score(), Score()
    return tuple(Score(is_right(found.reply.text, [right], normalize), 1) for right in (found.kept, found.whole))


def _most_frequent(
    entries: Sequence[ManifestEntry], group: Callable[[ManifestEntry], Hashable], normalize: Normalizer
) -> dict[str, Score]:
    """Return for each entry whether the most frequent reference answer of its group is right."""
    answers = {entry.id: normalized_references(entry, normalize) for entry in entries}
    counts = defaultdict(Counter)
    for entry in entries:
        counts[group(entry)].update(answers[entry.id])
    best = {key: max(count, key=count.get, default=None) for key, count in counts.items()}
    return {entry.id: Score(best[group(entry)] in answers[entry.id], 1) for entry in entries}


def write_dialogs(
    path: Path, dialogs: Sequence[Dialog], answers: Answers, plan: InterviewPlan, normalize: Normalizer
) -> None:
    """Write the turns that were asked to a file, as lines of JSON with question, reference answers and answers."""
    with whole_text(path) as file:
        for line in _lines(dialogs, answers, plan, normalize):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _lines(dialogs: Sequence[Dialog], answers: Answers, plan: InterviewPlan, normalize: Normalizer) -> Iterable[dict]:
    for dialog in dialogs:
        for entry in dialog.turns:
            if entry.id not in answers.history:
                continue
            reply, right = answers.history[entry.id], entry.reference_answers()
            line = {"id": entry.id, "dialog": dialog.name, "turn": entry.turn, "kind": entry.kind}
            line |= {"question": entry.t1, "typed": plan.is_typed(entry), "right": right, "answer": reply.text}
            line["is_right"] = is_right(reply.text, right, normalize)
            if entry.id in answers.alone:
                line["alone"] = answers.alone[entry.id].text
            if entry.id in answers.cropped:
                found = answers.cropped[entry.id]
                line["cropped"] = {"right": found.kept, "answer": found.reply.text}
            yield line


def conversation_table(results: Mapping[str, Mapping[str, ConversationScores]]) -> str:
    """Return scores, by split and answer mode, as a Markdown table with a line for each kind of question."""
    rows = []
    for split, modes in results.items():
        for mode, scores in modes.items():
            kinds = {FOLLOW_UPS: scores.follow_ups, **{kind or "no kind": each for kind, each in scores.kinds.items()}}
            rows += [_row(f"{split}, {mode}: {kind}", each) for kind, each in kinds.items()]
    return markdown_table(_HEADER, rows)


_HEADER = [
    "Questions, how answered", "Asked", "Right %", "Alone %", "Most frequent answer to the text %", "To the kind %",
    "Interrupted", "Right by the part heard %", "By the whole answer %",
]  # fmt: skip


def _row(name: str, scores: KindScores) -> list[str]:
    shares = (scores.history, scores.alone, scores.frequent_of_text, scores.frequent_of_kind)
    interrupted = [str(scores.cropped.asked), percent(scores.cropped.percent), percent(scores.uncropped.percent)]
    return [name, str(scores.history.asked), *(percent(share.percent) for share in shares), *interrupted]
