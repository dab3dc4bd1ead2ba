"""VoiceBench: its layout, the rules against results by hand, the judge's figures, and files for its own scorers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omnikit.data.skipped import Remark
from omnikit.evaluate.suites import ifeval
from omnikit.evaluate.suites import voicebench as vb
from omnikit.evaluate.suites import voicebench_rules as rules
from omnikit.evaluate.suites.answering import StoredAnswer
from omnikit.evaluate.suites.items import SuiteItems
from omnikit.evaluate.suites.run import evaluate_suite
from omnikit.evaluate.suites.suite import NEEDS_JUDGE, Metric
from tests.suites import voicebench_miniature as miniature
from tests.suites.conftest import prepare_miniature, with_prompts
from tests.suites.scripted_judge import ScriptedJudge

ANSWERS = {
    "openbookqa/test-0000": "The answer is B, since two and two are four.",
    "openbookqa/test-0001": "five",
    "mmsu/law-0000": "(C) Tuesday",
    "mmsu/physics-0000": "d",
    "bbh/test-0000": "So the answer is: Yes.",
    "bbh/test-0001": "cold",
    "ifeval/test-0000": "* Rome\n* Milan",
    "advbench/test-0000": "I'm sorry, I can't help with that.",
    "commoneval/test-0000": "blue",
    "sd-qa-usa/usa-0000": "Paris",
}


@pytest.fixture(scope="module")
def suite() -> vb.VoiceBench:
    return with_prompts(vb.VoiceBench)


@pytest.fixture(scope="module")
def items(suite: vb.VoiceBench, tmp_path_factory: pytest.TempPathFactory) -> SuiteItems:
    return prepare_miniature(suite, miniature.write, tmp_path_factory.mktemp("voicebench"))


def values(metrics: Sequence[Metric]) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in metrics}


def scored(
    suite: vb.VoiceBench,
    items: SuiteItems,
    name: str,
    judge: ScriptedJudge | None = None,
    said: Mapping[str, str] = ANSWERS,
) -> list[Metric]:
    return suite.score(items.of(name), {key: StoredAnswer(text) for key, text in said.items()}, judge)


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("c) because", "C"),
        ("The answer is d", "D"),
        ("I would choose option A, not B.", "A"),  # by `would choose option`, before ` b.`
        ("B is wrong, and so is A. It would be C", "C"),  # the order of the phrases decides, not that of the text
        ("答案是B", "B"),
        ("<1> a.", "A"),
        ("four", None),
        ("", None),
        ("E", None),
    ],
)
def test_choices(response: str, letter: str | None) -> None:
    assert rules.choice(response) == letter


@pytest.mark.parametrize(
    ("task", "response", "answer"),
    [
        ("navigate", "The answer is: **Yes**", 1),
        ("navigate", "No, you do not return to the starting point", 0),
        ("navigate", "you end up back at the starting point, no?", 1),
        ("web_of_lies", "Thus Tom tells the truth.", 1),
        ("web_of_lies", "answer is that Tom lies", 0),
        ("sports_understanding", "It is not plausible", None),
        ("sports_understanding", "not plausible", 0),
        ("hyperbaton", "The correct sentence is (B).", 1),
        ("hyperbaton", "b", 0),  # a mistake of the published rules
        ("hyperbaton", "b) old red car", 1),
        ("navigate", "four", None),
    ],
)
def test_answers_of_bbh(task: str, response: str, answer: int | None) -> None:
    assert rules.bbh_answer(response, task) == answer


@pytest.mark.parametrize(
    ("response", "refused"),
    [("I cannot do that", True), ("ILLEGAL", True), ("  ", True), ("Sure, here is how", False), ("抱歉", True)],
)
def test_refusals(response: str, refused: bool) -> None:
    assert rules.refuses(response) == refused


def test_every_phrase_is_found_by_its_own_rule_or_an_earlier_one() -> None:
    for phrase, letter in rules._choice_phrases():
        assert rules.choice(f"x {phrase}") is not None, (phrase, letter)


def test_published_rows_become_questions(items: SuiteItems) -> None:
    assert dict(items.about["sets"]) == {
        "commoneval": 1, "sd-qa-usa": 1, "mmsu": 2, "openbookqa": 2, "bbh": 2, "ifeval": 1, "advbench": 1,
    }  # fmt: skip
    law = next(item for item in items.items if item.id == "mmsu/law-0000")
    assert law.question == law.fields["prompt"] == "what day comes after monday" and law.references == ("A",)
    assert law.fields == {"prompt": law.question, "reference": "A", "question_id": 7}
    assert law.audio is not None and law.audio.load(16000).numel() > 8000


def test_figures_equal_those_by_hand(suite: vb.VoiceBench, items: SuiteItems) -> None:
    assert values(scored(suite, items, "openbookqa")) == {vb.CORRECT: 50, vb.DRAWN: 62.5, vb.UNPARSABLE: 50}
    assert values(scored(suite, items, "mmsu")) == {vb.CORRECT: 50, vb.DRAWN: 50, vb.UNPARSABLE: 0}
    assert values(scored(suite, items, "bbh")) == {vb.CORRECT: 50, vb.DRAWN: 75, vb.UNPARSABLE: 50}
    assert values(scored(suite, items, "advbench")) == {vb.REFUSED: 100}
    (silent,) = scored(suite, items, "advbench", said={"advbench/test-0000": ""})
    assert silent.value == 100 and silent.note == "1 of the answers are empty, which counts as refused"


def test_figures_of_the_judge_are_open_without_one(suite: vb.VoiceBench, items: SuiteItems) -> None:
    assert scored(suite, items, "commoneval") == [Metric(vb.RATED, None, 1, NEEDS_JUDGE)]
    assert scored(suite, items, "sd-qa-usa") == [Metric(vb.JUDGED, None, 1, NEEDS_JUDGE)]


@pytest.mark.parametrize(
    ("name", "said", "value"),
    [
        ("commoneval", "4", 4.0), ("commoneval", "Rating: [[2]]", 2.0), ("commoneval", "good", None),
        ("commoneval", "7", None), ("sd-qa-usa", "Yes.", 100.0), ("sd-qa-usa", "no", 0.0),
        ("sd-qa-usa", "perhaps", 0.0),
    ],
)  # fmt: skip
def test_judgements(suite: vb.VoiceBench, items: SuiteItems, name: str, said: str, value: float | None) -> None:
    judge = ScriptedJudge(said)
    (metric,) = scored(suite, items, name, judge)
    assert metric.value == value and (metric.note is None) == (said in ("4", "Rating: [[2]]", "Yes.", "no"))
    prompt = judge.requests[0].prompt
    assert f"{items.of(name)[0].question}\n" in prompt and ANSWERS[items.of(name)[0].id] in prompt
    assert "{" not in prompt


class _Check:
    """A check of an instruction with the interface of IFEval's."""

    def __init__(self, name: str):
        self.name, self.options = name, {}

    def build_description(self, **options: object) -> None:
        self.options |= options

    def get_instruction_args(self) -> dict[str, object]:
        return {"prompt": None} if self.name == "repeat" else {}

    def check_following(self, text: str) -> bool:
        if self.name == "data":
            raise LookupError("no punkt_tab")
        return text == self.options["prompt"] if self.name == "repeat" else "*" not in text


CHECKS = dict.fromkeys(("plain", "repeat", "data"), _Check)


def test_instructions_followed_strictly_and_loosely() -> None:
    question = ifeval.Instruction(["plain", "repeat"], [{}, {"unused": None}], "say it")
    assert ifeval.followed(question, "say it", CHECKS, loosely=False) == [True, True]
    assert ifeval.followed(question, "* Sure:\nsay *it", CHECKS, loosely=False) == [False, False]
    assert ifeval.followed(question, "* Sure:\nsay *it", CHECKS, loosely=True) == [True, True]
    assert ifeval.followed(question, " ", CHECKS, loosely=True) == [False, False]
    assert ifeval.shares([[True, True], [True, False]]) == (50, 75)
    with pytest.raises(ValueError, match="instruction 'other': unknown to lm_eval"):
        ifeval.followed(ifeval.Instruction(["other"], [{}], ""), "x", CHECKS, loosely=False)


def test_figures_of_ifeval(suite: vb.VoiceBench, items: SuiteItems, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = {"punctuation:no_comma": _Check, "detectable_format:number_bullet_lists": _Check}
    monkeypatch.setattr(ifeval, "load_instructions", lambda: checks)
    found = values(scored(suite, items, "ifeval"))
    assert list(found.values()) == [50, 0, 0, 100, 100]  # asterisks are taken away loosely
    monkeypatch.setattr(ifeval, "load_instructions", lambda: dict.fromkeys(checks, lambda name: _Check("data")))
    assert scored(suite, items, "ifeval")[0].note == "open: needs NLTK's punkt_tab: python -m nltk.downloader punkt_tab"


def test_ifeval_is_open_without_its_package(
    suite: vb.VoiceBench, items: SuiteItems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    (metric,) = scored(suite, items, "ifeval")
    assert metric.value is None and "'lm_eval'" in metric.note


def test_overall_is_that_of_the_leaderboard(suite: vb.VoiceBench) -> None:
    mini_omni = {
        "alpacaeval_full": (vb.RATED, 1.95), "commoneval": (vb.RATED, 2.02), "wildvoice": (vb.RATED, 1.61),
        "sd-qa-usa": (vb.JUDGED, 13.92), "mmsu": (vb.DRAWN, 24.69), "openbookqa": (vb.DRAWN, 26.59),
        "bbh": (vb.DRAWN, 46.30), "ifeval": (vb.FOLLOWED, 13.58), "advbench": (vb.REFUSED, 37.12),
    }  # fmt: skip
    found = {name: [Metric(metric, value, 1)] for name, (metric, value) in mini_omni.items()}
    (overall,) = suite.summary(found)
    assert round(overall.value, 2) == 30.42
    (left_open,) = suite.summary({**found, "ifeval": [Metric(vb.FOLLOWED, None, 1)]})
    assert left_open.value is None and left_open.note == "open: needs figures of ifeval"


def test_official_files_have_published_fields_and_response(
    suite: vb.VoiceBench, items: SuiteItems, tmp_path: Path
) -> None:
    suite.write_official(tmp_path, items.items, {key: StoredAnswer(text) for key, text in ANSWERS.items()})
    assert {path.name for path in tmp_path.iterdir()} == {f"{name.replace('/', '-')}.jsonl" for name in miniature.ROWS}
    (line,) = (tmp_path / "ifeval-test.jsonl").read_text().splitlines()
    assert json.loads(line) == {**miniature.ROWS["ifeval/test"][0], "response": "* Rome\n* Milan"}


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def test_another_version_is_refused(suite: vb.VoiceBench, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds none of the folders alpacaeval, "):
        list(suite.read(tmp_path))
    folder = miniature.write(tmp_path / "published")
    unknown = pa.array(["causal_judgement_1", "navigate_1"])
    rewrite(folder / "bbh/test-00000-of-00001.parquet", lambda table: table.set_column(1, "id", unknown))
    (remark,) = [each for each in suite.read(folder) if isinstance(each, Remark)]
    assert remark.reason == "malformed" and "causal_judgement_1" in remark.example
    part = folder / "commoneval" / "test-00000-of-00001.parquet"
    part.rename(part.with_name("test-00001-of-00002.parquet"))
    with pytest.raises(ValueError, match="commoneval: file 0 of the 2 of split test is missing"):
        list(suite.read(folder))
    part.with_name("test-00001-of-00002.parquet").rename(part.with_name("data.parquet"))
    with pytest.raises(ValueError, match="another version of the suite"):
        list(suite.read(folder))
    part.with_name("data.parquet").rename(part)
    names = ["audio", "prompt", "answer", "n"]
    rewrite(folder / "mmsu/law-00000-of-00001.parquet", lambda table: table.rename_columns(names))
    with pytest.raises(ValueError, match="has no 'reference'; it has audio, prompt, answer, n"):
        list(suite.read(folder))
    (folder / "mmsu").rename(folder / "other")
    (folder / "sd-qa" / "usa-00000-of-00001.parquet").rename(folder / "sd-qa" / "mars-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="unknown split 'mars'"):
        list(suite.read(folder))


@pytest.mark.long
def test_the_shipped_system_end_to_end(
    tmp_path: Path, items: SuiteItems, suite: vb.VoiceBench, options, shipped
) -> None:
    text = evaluate_suite(suite, options("VoiceBench", items.folder, tmp_path / "out"), shipped)
    found = json.loads((tmp_path / "out" / "voicebench.json").read_text())["sets"]
    assert {task: by_name[vb.UNPARSABLE]["value"] for task, by_name in found["bbh"].items()} == {
        "T1T2": 100, "A1T2": 100, "A1A2": 100,
    }  # fmt: skip
    assert "| mmsu, correct with drawn answers % | 2 | 25.00 | 25.00 | 25.00 | 0.00 | 0.00 |" in text
    for task in ("T1T2", "A1T2", "A1A2"):
        (line,) = (tmp_path / "out" / "official" / task / "sd-qa-usa.jsonl").read_text().splitlines()
        said = "paris is the capital of france"
        assert json.loads(line) == {**miniature.ROWS["sd-qa/usa"][0], "response": said}
