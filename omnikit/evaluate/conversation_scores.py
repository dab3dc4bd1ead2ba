"""Score conversations: right answers with and without the turns before, and after an interrupted answer."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnikit.data.manifest_reader import ManifestEntry
from omnikit.evaluate.conversation import Cropped, InterviewAnswers, InterviewPlan
from omnikit.evaluate.dialogs import Dialog
from omnikit.evaluate.qa import is_right, normalized_references
from omnikit.evaluate.result_tables import markdown_table, percent
from omnikit.evaluate.text_normalisation import Normalizer, of_language
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
class CropScores:
    """Scores of follow-up questions about an answer of which a share was heard before it was interrupted."""

    cropped: Score = Score()  # right by the part that was heard
    uncropped: Score = Score()  # right by the whole of that answer, as if not interrupted

    def __add__(self, other: CropScores) -> CropScores:
        return CropScores(self.cropped + other.cropped, self.uncropped + other.uncropped)

    def as_dict(self) -> dict[str, dict]:
        """Return both scores as a dictionary for JSON."""
        return {name: scores.as_dict() for name, scores in vars(self).items()}


@dataclass(frozen=True)
class KindScores:
    """Scores of one kind of question, or of all follow-up questions."""

    history: Score = Score()  # in the conversation
    alone: Score = Score()  # as the first turn, without the turns before; none for questions that are no follow-ups
    frequent_of_text: Score = Score()  # if each text of a question got its most frequent answer of the training
    frequent_of_kind: Score = Score()  # if each kind of question got its most frequent answer of the training
    crops: Mapping[float, CropScores] = field(default_factory=dict)  # share heard of an answer -> scores

    def __add__(self, other: KindScores) -> KindScores:
        shares = sorted({*self.crops, *other.crops})
        sums = (a + b for a, b in zip(self._plain(), other._plain(), strict=True))
        return KindScores(*sums, {share: self.after(share) + other.after(share) for share in shares})

    def _plain(self) -> list[Score]:
        return [self.history, self.alone, self.frequent_of_text, self.frequent_of_kind]

    def after(self, share: float) -> CropScores:
        """Return the scores after a share of an answer was heard."""
        return self.crops.get(share, CropScores())

    @property
    def interrupted(self) -> CropScores:
        """Scores after an interruption, whatever share was heard."""
        return sum(self.crops.values(), CropScores())

    def as_dict(self) -> dict[str, Any]:
        """Return all scores as a dictionary for JSON."""
        names = ("history", "alone", "frequent_of_text", "frequent_of_kind")
        plain = {name: getattr(self, name).as_dict() for name in names} | self.interrupted.as_dict()
        return {**plain, "crops": {f"{share:g}": each.as_dict() for share, each in self.crops.items()}}


@dataclass(frozen=True)
class ConversationScores:
    """Scores of the conversations of one split in one answer mode."""

    kinds: dict[str, KindScores]  # kind of question -> its scores
    follow_ups: KindScores  # all follow-up questions
    dialogs: int
    typed: int  # questions that were typed
    truncated: int  # answers that a limit ended
    skipped: dict[str, int]  # reason -> questions that were not asked
    shares: Sequence[float] = ()  # of answers that were heard before an interruption

    def as_dict(self) -> dict:
        """Return the scores as a dictionary for JSON."""
        counts = {name: getattr(self, name) for name in ("dialogs", "typed", "truncated", "skipped")}
        kinds = {kind: scores.as_dict() for kind, scores in self.kinds.items()}
        return {**counts, "follow_ups": self.follow_ups.as_dict(), "kinds": kinds}


def score(
    dialogs: Sequence[Dialog],
    answers: InterviewAnswers,
    plan: InterviewPlan,
    normalize: Normalizer,
    training: Sequence[Dialog] | None = None,
) -> ConversationScores:
    """Compare the answers of conversations with the reference answers of the manifest entries.

    The answer after an interruption is compared with the part that was heard, see `AboutAnswer`.

    Args:
        training: dialogs whose follow-ups say which answers are the most frequent; None = no score of these.

    Raises:
        ValueError: no question could be asked.
    """
    entries = [entry for dialog in dialogs for entry in dialog.turns if entry.id in answers.history]
    if not entries:
        raise ValueError(f"sources: no question of a dialog could be asked; skipped: {answers.skipped}")
    follow_ups = [entry for entry in _follow_ups(dialogs, plan) if entry.id in answers.history]
    known = None if training is None else _follow_ups(training, plan)
    by_text = _if_most_frequent(follow_ups, known, lambda each: _own(normalize, each)(each.t1), normalize)
    by_kind = _if_most_frequent(follow_ups, known, lambda entry: entry.kind, normalize)
    kinds: dict[str, KindScores] = defaultdict(KindScores)
    counted, total = {entry.id for entry in follow_ups}, KindScores()
    for entry in entries:
        found = KindScores(
            _right(entry, answers.history, normalize),
            _right(entry, answers.alone, normalize),
            by_text.get(entry.id, Score()),
            by_kind.get(entry.id, Score()),
            {each.share: _after_crop(each, _own(normalize, entry)) for each in _crops(entry, answers, plan)},
        )
        kinds[entry.kind] += found
        if entry.id in counted:
            total += found
    typed = sum(plan.is_typed(entry) for entry in entries)
    skipped = dict(answers.skipped.reasons)
    found, shares = dict(sorted(kinds.items())), plan.crop if plan.about_answer and plan.speak else ()
    return ConversationScores(found, total, len(dialogs), typed, answers.truncated, skipped, shares)


def _right(entry: ManifestEntry, replies: Mapping[str, object], normalize: Normalizer) -> Score:
    if entry.id not in replies:
        return Score()
    return Score(is_right(replies[entry.id].text, entry.reference_answers(), _own(normalize, entry)), 1)


def _own(normalize: Normalizer, entry: ManifestEntry) -> Normalizer:
    return of_language(normalize, entry.language)


def _follow_ups(dialogs: Sequence[Dialog], plan: InterviewPlan) -> list[ManifestEntry]:
    return [entry for dialog in dialogs for entry in plan.follow_up_questions(dialog)]


def _crops(entry: ManifestEntry, answers: InterviewAnswers, plan: InterviewPlan) -> list[Cropped]:
    """Return the answers to a question after interruptions of the answer before."""
    found = [answers.cropped.get((entry.id, share)) for share in plan.crop]
    return [each for each in found if each is not None]


def _after_crop(found: Cropped, normalize: Normalizer) -> CropScores:
    wanted = (found.kept, found.whole)
    return CropScores(*(Score(is_right(found.reply.text, [right], normalize), 1) for right in wanted))


def _if_most_frequent(
    entries: Sequence[ManifestEntry],
    training: Sequence[ManifestEntry] | None,
    group: Callable[[ManifestEntry], Hashable],
    normalize: Normalizer,
) -> dict[str, Score]:
    """Return for each entry whether the most frequent answer of its group in training is right.

    No answer is right for a group that training lacks. Without training there are no scores.
    """
    if training is None:
        return {}
    counts: dict[Hashable, Counter] = defaultdict(Counter)
    for entry in training:
        counts[group(entry)].update(normalized_references(entry, normalize))
    best = {key: max(count, key=count.get, default=None) for key, count in counts.items()}
    return {e.id: Score(best.get(group(e)) in normalized_references(e, normalize), 1) for e in entries}


def write_dialogs(
    path: Path, dialogs: Sequence[Dialog], answers: InterviewAnswers, plan: InterviewPlan, normalize: Normalizer
) -> None:
    """Write the turns that were asked to a file, as lines of JSON with question, reference answers and answers."""
    with whole_text(path) as file:
        for line in _lines(dialogs, answers, plan, normalize):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _lines(
    dialogs: Sequence[Dialog], answers: InterviewAnswers, plan: InterviewPlan, normalize: Normalizer
) -> Iterable[dict]:
    for dialog in dialogs:
        for entry in dialog.turns:
            if entry.id not in answers.history:
                continue
            reply, right = answers.history[entry.id], entry.reference_answers()
            line = {"id": entry.id, "dialog": dialog.name, "turn": entry.turn, "kind": entry.kind}
            line |= {"question": entry.t1, "typed": plan.is_typed(entry), "right": right, "answer": reply.text}
            line["is_right"] = is_right(reply.text, right, _own(normalize, entry))
            if entry.id in answers.alone:
                line["alone"] = answers.alone[entry.id].text
            if crops := _crops(entry, answers, plan):
                line["cropped"] = [{"share": c.share, "right": c.kept, "answer": c.reply.text} for c in crops]
            yield line


def conversation_table(results: Mapping[str, Mapping[str, ConversationScores]]) -> str:
    """Return scores, by split and answer mode, as a Markdown table with a line for each kind of question."""
    shares = sorted({share for modes in results.values() for each in modes.values() for share in each.shares})
    rows = []
    for split, modes in results.items():
        for mode, scores in modes.items():
            kinds = {FOLLOW_UPS: scores.follow_ups, **{kind or "no kind": each for kind, each in scores.kinds.items()}}
            rows += [_row(f"{split}, {mode}: {kind}", each, shares) for kind, each in kinds.items()]
    heard = [f"Heard {share:.0%}: right by the part heard / by the whole answer % (n)" for share in shares]
    return markdown_table([*_HEADER, *heard], rows)


_HEADER = [
    "Questions, how answered", "Asked", "Right %", "Alone %", "Most frequent in training, to the text %",
    "To the kind %",
]  # fmt: skip


def _row(name: str, scores: KindScores, shares: Sequence[float]) -> list[str]:
    plain = (scores.history, scores.alone, scores.frequent_of_text, scores.frequent_of_kind)
    heard = [_heard(scores.after(share)) for share in shares]
    return [name, str(scores.history.asked), *(percent(each.percent) for each in plain), *heard]


def _heard(scores: CropScores) -> str:
    figures = f"{percent(scores.cropped.percent)} / {percent(scores.uncropped.percent)}"
    return f"{figures} ({scores.cropped.asked})" if scores.cropped.asked else "-"
