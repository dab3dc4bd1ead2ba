"""URO-Bench: forty sets of spoken questions in English, Chinese and other languages, at two levels.

The layout and the scores are those of Ruiqi-Yan/URO-Bench at 9e74bc04. Sets are scored by rule (error rates), by an
LLM, or by networks that listen (GenEmotion, SRT). The rows of the last stay open: the project's scripts score them from
our files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omnikit.data.skipped import Remark
from omnikit.errors import one_line
from omnikit.evaluate.suites.answering import StoredAnswer
from omnikit.evaluate.suites.items import SuiteItem
from omnikit.evaluate.suites.judges import JudgePrompt, JudgeRequest, LLMJudge
from omnikit.evaluate.suites.suite import NEEDS_JUDGE, Metric, Suite, mean_metric
from omnikit.evaluate.suites.urobench_files import (
    conversations,
    published_root,
    read_set,
    reference_text,
    write_answers,
)
from omnikit.evaluate.suites.urobench_scores import (
    corpus_rate,
    mean_rate,
    rating_of,
    repetition,
    token_errors,
    verdict_of,
)
from omnikit.evaluate.suites.urobench_sets import (
    LAYOUT,
    REPEAT,
    REPEATED,
    SCORE,
    SETS,
    TRACKS,
    UROSet,
    published,
    rate_name,
    rated,
    track_rate,
    track_score,
)
from omnikit.evaluate.text_normalisation import normalizer_version

SYSTEM_PROMPT = "You are a helpful assistant."
MAX_TOKENS = 1024
"""System prompt and maximum number of tokens of the project's requests (metrics/mark_gpt.py)."""
BEST_RATING = 5
LISTENERS = {
    "ge": "open: needs emotion2vec, which the project's mark.py --mode ge runs on the files in official/",
    "srt": "open: needs an LLM that hears, which the project's mark.py --mode srt asks about the files in official/",
}
"""Mapping from mode to the note of a score that needs a network that listens to answers."""
OPEN_CHINESE = "open: "


class UROBench(Suite):
    """The suite URO-Bench."""

    name = "URO-Bench"
    layout = LAYOUT
    sets = tuple(SETS)
    published = tuple(published())
    partial_summary = True

    def read(self, source: Path) -> Iterator[SuiteItem | Remark]:
        """Yield the questions of the sets that a folder has, as `<level>/<set>/test.jsonl`; see `Suite.read`."""
        root = published_root(source)
        for each in SETS.values():
            yield from read_set(root, each)

    def score(
        self, items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer], judge: LLMJudge | None
    ) -> list[Metric]:
        """Return the project's score of a set, 0 to 100, and the error rates of spoken answers against their texts."""
        if not items:
            return [Metric(SCORE, None, 0, "open: no question was answered")]
        each = SETS[items[0].set]
        groups = conversations(items) if each.has_rounds else [[item] for item in items]
        if not groups:
            return [Metric(SCORE, None, 0, "open: no conversation was asked to its end")]
        found = (
            _repetition(each, items, answers) if each.mode == REPEAT else [self._judged(each, groups, answers, judge)]
        )
        return found + (_speech(each, groups, answers) if rated(each) else [])

    def summary(self, found: Mapping[str, Sequence[Metric]]) -> list[Metric]:
        """Return the means over the sets of each track, as the leaderboard has them; open where a track lacks a set."""
        figures = []
        for track in TRACKS:
            chosen = [each for each in SETS.values() if each.track == track]
            if not any(each.name in found for each in chosen):
                continue
            rate = rate_name(track.split()[1])
            figures.append(_mean(track_score(track), SCORE, chosen, found))
            speaking = any(metric.name == rate for metrics in found.values() for metric in metrics)
            if speaking:
                figures.append(_mean(track_rate(track), rate, [each for each in chosen if rated(each)], found, "lower"))
        return figures

    def protocol(self) -> dict[str, str]:
        """Return the text normalisers of both languages with their versions."""
        return {f"normalizer {name}": normalizer_version(name) for name in ("english", "chinese")}

    def write_official(self, folder: Path, items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer]) -> None:
        """Write the answers as the project's scripts read them; see `urobench_files`."""
        write_answers(folder, items, answers)

    def _judged(
        self,
        each: UROSet,
        groups: Sequence[Sequence[SuiteItem]],
        answers: Mapping[str, StoredAnswer],
        judge: LLMJudge | None,
    ) -> Metric:
        """Return the score of a set by the judge: the mean rating, or the share of answers that it calls correct.

        An answer without a text is rated 0 and not judged, except in a conversation.
        """
        if each.mode in LISTENERS or judge is None:
            return Metric(SCORE, None, len(groups), LISTENERS.get(each.mode, NEEDS_JUDGE))
        asked = [g for g in groups if each.has_rounds or answers[g[0].id].scored.strip()]
        prompts = [self._request(each, group, answers) for group in asked]
        said = judge.ask_all([JudgeRequest(prompt, SYSTEM_PROMPT, MAX_TOKENS) for prompt in prompts], each.name)
        parsed = [verdict_of(text) if each.mode == "qa" else rating_of(text) for text in said]
        unclear = parsed.count(None)
        best = 1 if each.mode == "qa" else BEST_RATING
        note = f"{unclear} judgements cannot be read, and count as 0" if unclear else None
        return Metric(SCORE, 100 * sum(filter(None, parsed)) / (best * len(groups)), len(groups), note)

    def _request(self, each: UROSet, group: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer]) -> str:
        """Return the filled prompt for an answer, or for the answers of a conversation."""
        if each.has_rounds:
            values = {}
            for number, item in enumerate(group, 1):
                values[f"question{number}"] = item.question
                values[f"answer{number}"] = answers[item.id].scored
                values[f"reference{number}"] = reference_text(item)
            return self._prompt(each, len(group)).fill(**values)
        item = group[0]
        values = {"question": item.question, "answer": answers[item.id].scored, "reference": reference_text(item)}
        values |= {"style": item.fields["style"]} if each.mode == "gs" else {}
        values |= {"emotion": item.fields["emotion"]} if each.mode == "ue" else {}
        values |= {"language": item.fields["requirement"]} if each.mode == "ml" else {}
        prompt = self._prompt(each, 1)
        return prompt.fill(**{name: str(value) for name, value in values.items() if f"{{{name}}}" in prompt.text})

    def _prompt(self, each: UROSet, rounds: int) -> JudgePrompt:
        return self.prompt(f"multi{rounds}" if each.mode == "multi" else each.mode)


def _repetition(each: UROSet, items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer]) -> list[Metric]:
    """Return the project's score of repetitions, and beside it the error rate of the corpus."""
    unit = "CER" if each.language == "zh" else "WER"
    names = (SCORE, REPEATED, f"{unit} of repetitions %", f"{unit} against the question %, corpus")
    better = ("higher", "higher", "lower", "lower")
    texts, said = [reference_text(item) for item in items], [answers[item.id].scored for item in items]
    try:
        found = repetition(texts, said, each.language)
        errors = [token_errors(*pair, each.language) for pair in zip(texts, said, strict=True)]
    except ValueError as error:  # cn2an is missing
        note = OPEN_CHINESE + one_line(error)
        return [Metric(name, None, len(items), note, way) for name, way in zip(names, better, strict=True)]
    values = (found.score, found.repeated, found.rate, corpus_rate(errors))
    return [Metric(*pair, len(items), None, way) for *pair, way in zip(names, values, better, strict=True)]


def _speech(each: UROSet, groups: Sequence[Sequence[SuiteItem]], answers: Mapping[str, StoredAnswer]) -> list[Metric]:
    """Return the error rates of what a recogniser heard against the texts: mean of utterances, and corpus.

    There are none for written answers, and for spoken ones that were not transcribed.
    """
    given = [[answers[item.id] for item in group] for group in groups]
    if all(answer.heard is None for group in given for answer in group):
        return []
    name = rate_name(each.language)
    names = (name, f"{name}, corpus")
    try:
        errors = [[token_errors(one.text, one.heard or "", each.language) for one in group] for group in given]
    except ValueError as error:  # cn2an is missing
        return [Metric(one, None, len(groups), OPEN_CHINESE + one_line(error), "lower") for one in names]
    values = (mean_rate(errors), corpus_rate([one for group in errors for one in group]))
    return [Metric(*pair, len(groups), None, "lower") for pair in zip(names, values, strict=True)]


def _mean(
    title: str,
    name: str,
    chosen: Sequence[UROSet],
    found: Mapping[str, Sequence[Metric]],
    better: str = "higher",
) -> Metric:
    """Return the mean of one figure of the chosen sets; open if a set is missing or its figure is open."""
    missing = [each.name for each in chosen if each.name not in found]
    metrics = [metric for each in chosen for metric in found.get(each.name, ()) if metric.name == name]
    if missing:
        return Metric(title, None, sum(m.count for m in metrics), f"open: without {', '.join(missing)}", better)
    return mean_metric(title, metrics, better=better)
