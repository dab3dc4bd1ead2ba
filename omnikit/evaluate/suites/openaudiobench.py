"""OpenAudioBench (arXiv 2501.15368): five sets of spoken questions, scored by a judge.

The layout is that of the data set baichuan-inc/OpenAudioBench (98f8fa0d) as MoonshotAI/Kimi-Audio-Evalkit reads it
(data/download_benchmark.py at 4080c492): `eval_datas/<set>/<set>.csv`, and recordings in `audios/` beside it. How
judgements are read, and the files for other scorers, are that project's (almeval/datasets/ds_refqa.py and base.py).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnikit.evaluate.suites.answering import StoredAnswer
from omnikit.evaluate.suites.items import SuiteItem
from omnikit.evaluate.suites.judges import JudgeRequest, LLMJudge
from omnikit.evaluate.suites.published_files import check_fields, recording
from omnikit.evaluate.suites.ratings import mean_rating, share_correct
from omnikit.evaluate.suites.suite import NEEDS_JUDGE, Metric, Suite, mean_metric, share
from omnikit.evaluate.text_normalisation import normalizer, normalizer_version
from omnikit.files import read_text, whole_text

JUDGED, SCORED, CONTAINING = "correct by judge %", "rating 0-100", "containing %"
AUDIO = "audio_filename"
"""Column with the name of a recording."""
SYSTEM_PROMPT = "You are a helpful assistant who tries to help answer the user's question."
MAX_TOKENS = 1024
"""System prompt and limit of the judge (almeval/judge_models/__init__.py)."""
RULE_NORMALIZER = "english"
"""Normaliser of answers and references where answers count that contain a reference."""
MODEL = "omnikit"
"""Name of the evaluated model in the names of the files for the evaluation kit."""
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


def _of_ten(said: str) -> float | None:
    """Return ten times the first `[[1]]` to `[[10]]` of a judgement; None if it has none."""
    found = re.search(r"\[\[(\d+)\]\]", said)
    return None if found is None or not 1 <= int(found[1]) <= 10 else 10.0 * int(found[1])


def _of_five(said: str) -> float | None:
    """Return twenty times the last `[0]` to `[5]` of a judgement; None if it has none."""
    found = re.findall(r"\[([0-5])\]", said)
    return 20.0 * int(found[-1]) if found else None


def _bracketed(said: str) -> bool | None:
    """Return the verdict of a judgement that says `the score is [Correct]`; None if it has none."""
    found = re.search(r"[Tt]he score is \[([Cc]orrect|[Ii]ncorrect)\]", said)
    return None if found is None else found[1].lower() == "correct"


def _as_json(said: str) -> bool | None:
    """Return the verdict of a judgement that holds `"judgment": "correct"` in braces; None if it has none."""
    found = re.search(r"\{[^}]*[\"']judgment[\"']\s*:\s*[\"'](correct|incorrect)[\"']", said, re.IGNORECASE)
    return None if found is None else found[1].lower() == "correct"


@dataclass(frozen=True)
class QuestionTable:
    """A set of the suite: the columns of its table, and how judgements of its answers are read."""

    question: str
    """Column with the text of the question."""
    answer: str
    """Column with the reference answers."""
    read: Callable[[str], Any]
    """Function from a judgement to a rating (0 to 100), or to a verdict (True, False); None if it has none."""
    rated: bool = False
    separator: str | None = None
    """Mark between several reference answers; None = there is one."""


TABLES = {
    "llama_questions": QuestionTable("Questions", "Answer", _bracketed),
    "web_questions": QuestionTable("question", "answers", _as_json, separator=";"),
    "reasoning_qa": QuestionTable("Prompt", "参考答案", _of_five, rated=True),
    "alpaca_eval": QuestionTable("instruction", "output", _of_ten, rated=True),
    "trivia_qa": QuestionTable("question", "answer_normalized_aliases", _as_json, separator=","),
}
"""Mapping from the names of the sets to their columns, in the order of the evaluation kit's file."""


class OpenAudioBench(Suite):
    """The suite OpenAudioBench."""

    name = "OpenAudioBench"
    layout = "baichuan-inc/OpenAudioBench as MoonshotAI/Kimi-Audio-Evalkit at 4080c492 reads it"
    sets = tuple(TABLES)

    def read(self, source: Path) -> Iterator[SuiteItem]:
        """Yield the questions of a folder with `eval_datas`, or of that folder itself; see `Suite.read`."""
        root = source / "eval_datas" if (source / "eval_datas").is_dir() else source
        tables = [(name, root / name / f"{name}.csv") for name in TABLES]
        found = [(name, path) for name, path in tables if path.is_file()]
        if not found:
            raise ValueError(f"{source}: holds no eval_datas/<set>/<set>.csv with a set of {', '.join(TABLES)}")
        for name, path in found:
            part = TABLES[name]
            for number, row in enumerate(_rows(path, (AUDIO, part.question, part.answer))):
                key = f"{name}/{number:04d}"
                audio = recording(key, row[AUDIO], path.parent / "audios")
                references = tuple(_references(row[part.answer], part.separator))
                language = "zh" if _CHINESE.search(row[part.question]) else "en"
                yield SuiteItem(key, name, row[part.question], references, language, row, audio)

    def score(
        self, items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer], judge: LLMJudge | None
    ) -> list[Metric]:
        """Return what the judge says, and for short answers the share that contain a reference."""
        if not items:
            return []
        part = TABLES[items[0].set]
        texts = [answers[item.id].scored for item in items]
        found = [self._judged(items, texts, judge)]
        return found if part.rated else [*found, _containing(items, texts)]

    def summary(self, found: Mapping[str, Sequence[Metric]]) -> list[Metric]:
        """Return the mean over the sets of what the judge says, if all sets are there."""
        chosen = [metric for listed in found.values() for metric in listed if metric.name in (JUDGED, SCORED)]
        return [mean_metric("mean of the sets", chosen)] if len(chosen) == len(TABLES) else []

    def protocol(self) -> dict[str, str]:
        """Return the normaliser of the rule."""
        return {"containing_normalizer": normalizer_version(RULE_NORMALIZER)}

    def write_official(self, folder: Path, items: Sequence[SuiteItem], answers: Mapping[str, StoredAnswer]) -> None:
        """Write the questions and the answers as Kimi-Audio-Evalkit reads them.

        `OpenAudioBench/OpenAudioBench.jsonl` is its data set, with `folder` as `dataset_root`, and
        `omnikit_OpenAudioBench.jsonl` has the same lines with `prediction` and `real_prompt`.
        """
        lines = [_official(number, item) for number, item in enumerate(items)]
        with whole_text(folder / self.name / f"{self.name}.jsonl") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        with whole_text(folder / f"{MODEL}_{self.name}.jsonl") as file:
            for item, line in zip(items, lines, strict=True):
                file.write(json.dumps({**line, "prediction": answers[item.id].scored, "real_prompt": ""}) + "\n")

    def _judged(self, items: Sequence[SuiteItem], texts: Sequence[str], judge: LLMJudge | None) -> Metric:
        name = items[0].set
        part = TABLES[name]
        metric = SCORED if part.rated else JUDGED
        if judge is None:
            return Metric(metric, None, len(items), NEEDS_JUDGE)
        prompt, requests = self.prompt(name), []
        for item, text in zip(items, texts, strict=True):
            more = {"answer": item.fields[part.answer].strip()} if "{answer}" in prompt.text else {}
            filled = prompt.fill(question=item.question.strip(), prediction=text, **more)
            requests.append(JudgeRequest(filled, SYSTEM_PROMPT, MAX_TOKENS))
        found = [part.read(said) for said in judge.ask_all(requests, f"{self.name} {name}")]
        return mean_rating(metric, found) if part.rated else share_correct(metric, found, left_out=True)


def _containing(items: Sequence[SuiteItem], texts: Sequence[str]) -> Metric:
    """Return the share of answers that contain the words of a reference in sequence, after normalisation."""
    normalize = normalizer(RULE_NORMALIZER)
    right = 0
    for item, text in zip(items, texts, strict=True):
        answer = f" {normalize(text)} "
        wanted = filter(None, map(normalize, item.references))
        right += any(f" {each} " in answer for each in wanted)
    return share(CONTAINING, right, len(items))


def _references(text: str, separator: str | None) -> list[str]:
    parts = [text] if separator is None else text.split(separator)
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _official(number: int, item: SuiteItem) -> dict[str, Any]:
    """Return a question as Kimi-Audio-Evalkit's JSONL has it, with its number in the set."""
    return {
        "index": number,
        "audio_path": item.audio.path if item.audio is not None else "",
        "subset": item.set,
        "question": "",
        "audio_content": item.question,
        "answer": item.fields[TABLES[item.set].answer],
        "task_type": "audio2text",
    }


def _rows(path: Path, fields: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a table in CSV with a header.

    Raises:
        ValueError: a column is missing, or a row has more or fewer fields.
    """
    reader = csv.DictReader(io.StringIO(read_text(path, "utf-8-sig"), newline=""), strict=True)
    try:
        check_fields(str(path), reader.fieldnames or (), fields)
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}: line {reader.line_num} has more or fewer fields than the header")
            yield row
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num} is no CSV ({error})") from None
