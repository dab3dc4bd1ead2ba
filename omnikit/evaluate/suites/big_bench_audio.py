"""Big Bench Audio: spoken questions of four kinds from BIG-Bench Hard, scored by an LLM and by rule.

The layout is that of the data set ArtificialAnalysis/big_bench_audio at af7bb9c2, as the loader of
huggingface/speech-to-speech reads it (src/speech_to_speech/evals/big_bench_audio/dataset.py at 29c7bab5):
`metadata.jsonl` with category, official_answer, file_name and id, and `data/question_<id>.mp3`. It has no transcripts;
a field `transcript` is used if there is one, as in the Parquet files of fixie-ai/big_bench_audio.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omnikit.data.find_files import visible
from omnikit.data.skipped import Remark
from omnikit.evaluate.suites.answering import TEXT_TO_TEXT, StoredAnswer
from omnikit.evaluate.suites.items import SuiteItem
from omnikit.evaluate.suites.judges import JudgeRequest, LLMJudge
from omnikit.evaluate.suites.published_files import jsonl_rows, parquet_rows, recording
from omnikit.evaluate.suites.suite import ALL, NEEDS_JUDGE, Metric, Published, Suite, mean_metric, share
from omnikit.files import whole_text

METADATA = "metadata.jsonl"
FIELDS = ("category", "official_answer", "id")
JUDGED, BY_RULE, UNPARSABLE = "correct %", "correct by rule %", "unparsable %"
OFFICIAL_FILE = "answers.jsonl"
_YES_NO = {"yes": "yes", "no": "no"}
CHOICES: dict[str, dict[str, str]] = {
    "formal_fallacies": {"valid": "valid", "invalid": "invalid"},
    "navigate": _YES_NO,
    "object_counting": {},
    "web_of_lies": _YES_NO,
}
"""Mapping from category to the words that are an answer, and what they mean; none where it is a number."""
_NUMBERS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
}  # fmt: skip
_NOT = re.compile(r"\b(?:not|isn't|is not)(?: \w+ly)? $")
_CORRECT = re.compile(r"\b(IN)?CORRECT\b")


class BigBenchAudio(Suite):
    """The suite Big Bench Audio."""

    name = "BigBenchAudio"
    layout = "ArtificialAnalysis/big_bench_audio at af7bb9c2"
    sets = tuple(CHOICES)
    published = (
        Published(
            "GPT-4o of August 2024", ALL, JUDGED, TEXT_TO_TEXT, 92.0, 1000,
            "mean of three runs, huggingface/blog at a0bf57a9, big-bench-audio-release.md",
            {"llm_judge": "claude-3-5-sonnet-20241022"},
        ),
    )  # fmt: skip

    def read(self, source: Path) -> Iterator[SuiteItem | Remark]:
        """Yield the questions of a folder with `metadata.jsonl`, or with Parquet files; see `Suite.read`."""
        for row, folder in _rows(source):
            if row["category"] not in CHOICES:
                raise ValueError(
                    f"{source}: unknown category {row['category']!r} (known: {', '.join(CHOICES)}): "
                    "another version of the suite"
                )
            name = f"{row['category']}/{row['id']}"
            stored = row["audio"] if "audio" in row else str(row["file_name"]).replace("\\/", "/")
            fields = {key: value for key, value in row.items() if key != "audio"}
            yield SuiteItem(
                name, row["category"], str(row.get("transcript") or ""), (str(row["official_answer"]),),
                fields=fields, audio=recording(name, stored, folder),
            )  # fmt: skip

    def score(
        self, items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer], judge: LLMJudge | None
    ) -> list[Metric]:
        """Return the share of answers that the judge calls correct, and that of a rule; see `parsed`."""
        found = [(item, parsed(item.set, answers[item.id].scored)) for item in items]
        right = sum(given == _official(item) for item, given in found)
        unclear = sum(given is None for _, given in found)
        return [
            self._judged(items, answers, judge),
            share(BY_RULE, right, len(items)),
            share(UNPARSABLE, unclear, len(items), better="lower"),
        ]

    def summary(self, found: Mapping[str, Sequence[Metric]]) -> list[Metric]:
        """Return the means over the categories, which have the same number of questions in the published suite."""
        names = [JUDGED, BY_RULE, UNPARSABLE]
        chosen = {name: [m for metrics in found.values() for m in metrics if m.name == name] for name in names}
        return [mean_metric(name, metrics, better=metrics[0].better) for name, metrics in chosen.items() if metrics]

    def write_official(self, folder: Path, items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer]) -> None:
        """Write a line of JSON for each question: the published fields and `candidate_answer`, as the judge gets it."""
        with whole_text(folder / OFFICIAL_FILE) as file:
            for item in items:
                line = {**item.fields, "candidate_answer": answers[item.id].scored}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _judged(
        self, items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer], judge: LLMJudge | None
    ) -> Metric:
        if judge is None:
            return Metric(JUDGED, None, len(items), NEEDS_JUDGE)
        prompt = self.prompt("correct")
        requests = [
            JudgeRequest(
                prompt.fill(
                    question=item.question, official_answer=item.references[0], candidate_answer=answers[item.id].scored
                )
            )
            for item in items
        ]
        verdicts = [_verdict(said) for said in judge.ask_all(requests, self.name)]
        unclear = verdicts.count(None)
        note = f"{unclear} judgements say neither CORRECT nor INCORRECT, and count as incorrect" if unclear else None
        return share(JUDGED, verdicts.count(True), len(items), note)


def parsed(category: str, text: str) -> str | None:
    """Return the answer that a text gives to a question of a category, by rule; None if it gives none.

    The last yes or no, valid or invalid, or number counts, since reasoning comes before the conclusion. `not valid` is
    invalid. Numbers may be written in words up to twenty.
    """
    words = text.casefold()
    if CHOICES[category]:
        found = list(re.finditer(rf"\b(?:{'|'.join(CHOICES[category])})\b", words))
        if not found:
            return None
        answer = found[-1][0]
        return "invalid" if answer == "valid" and _NOT.search(words[: found[-1].start()]) else answer
    found = re.findall(rf"\b(?:\d+|{'|'.join(_NUMBERS)})\b", words)
    if not found:
        return None
    return str(_NUMBERS[found[-1]] if found[-1] in _NUMBERS else int(found[-1]))


def _official(item: SuiteItem) -> str:
    return item.references[0].strip().casefold()


def _verdict(said: str) -> bool | None:
    """Return whether a judgement says correct; None if it says neither."""
    found = _CORRECT.search(said.upper())
    return None if found is None else found[1] is None


def _rows(source: Path) -> Iterable[tuple[dict[str, Any], Path]]:
    """Yield the published rows, each with the folder that paths of recordings are relative to.

    Raises:
        ValueError: the folder has neither `metadata.jsonl` nor Parquet files.
    """
    if (source / METADATA).is_file():
        yield from ((row, source) for row in jsonl_rows(source / METADATA, (*FIELDS, "file_name")))
        return
    files = sorted([*visible(source, "*.parquet"), *visible(source / "data", "*.parquet")])
    if not files:
        raise ValueError(f"{source}: holds neither {METADATA} nor Parquet files, as {BigBenchAudio.name} does")
    for path in files:
        yield from ((row, path.parent) for row in parquet_rows(path, (*FIELDS, "audio", "transcript")))
