"""OpenAudioBench: its layout, how judgements are read, and the files of Kimi-Audio-Evalkit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from omnikit.evaluate.suites import openaudiobench as oab
from omnikit.evaluate.suites.answering import StoredAnswer
from omnikit.evaluate.suites.items import SuiteItems
from omnikit.evaluate.suites.run import evaluate_suite
from omnikit.evaluate.suites.suite import NEEDS_JUDGE, Metric
from tests.suites import openaudiobench_miniature as miniature
from tests.suites.conftest import prepare_miniature, with_prompts
from tests.suites.scripted_judge import ScriptedJudge

CORRECT, WRONG = '{"analysis": "so", "judgment": "correct"}', '{"analysis": "so", "judgment": "incorrect"}'


@pytest.fixture(scope="module")
def suite() -> oab.OpenAudioBench:
    return with_prompts(oab.OpenAudioBench)


@pytest.fixture(scope="module")
def items(suite: oab.OpenAudioBench, tmp_path_factory: pytest.TempPathFactory) -> SuiteItems:
    return prepare_miniature(suite, miniature.write, tmp_path_factory.mktemp("openaudiobench"))


def scored(
    suite: oab.OpenAudioBench, items: SuiteItems, name: str, texts: Sequence[str], judge: ScriptedJudge | None
) -> list[Metric]:
    found = items.of(name)
    return suite.score(found, {item.id: StoredAnswer(t) for item, t in zip(found, texts, strict=True)}, judge)


def test_published_rows_become_questions(items: SuiteItems) -> None:
    assert dict(items.about["sets"]) == {name: len(rows) for name, rows in miniature.ROWS.items()}
    by_id = {item.id: item for item in items.items}
    assert by_id["web_questions/0000"].references == ("Wednesday", "Tuesday")
    assert by_id["trivia_qa/0000"].references == ("roma", "rome")
    assert by_id["alpaca_eval/0000"].references == ('The opposite of hot is cold, "cool".\nOr mild.',)
    assert by_id["reasoning_qa/0000"].language == "zh" and by_id["trivia_qa/0000"].language == "en"
    assert by_id["llama_questions/0001"].audio.load(16000).numel() > 8000


def test_answers_that_contain_a_reference(suite: oab.OpenAudioBench, items: SuiteItems) -> None:
    found = scored(suite, items, "web_questions", ["It is tuesday.", "whitewash"], None)
    assert found == [Metric(oab.JUDGED, None, 2, NEEDS_JUDGE), Metric(oab.CONTAINING, 50, 2)]


@pytest.mark.parametrize(
    ("name", "said", "value", "unclear"),
    [
        ("llama_questions", ["So the score is [Correct]", "the score is [incorrect]", "[Correct]"], 50, 1),
        ("web_questions", [f"```json\n{CORRECT}\n```", WRONG], 50, 0),
        ("trivia_qa", [CORRECT, "correct"], 100, 1),
        ("alpaca_eval", ["Good. Rating: [[8]]", "[[5]] or [[9]]"], 65, 0),
        ("alpaca_eval", ["[[11]]", "none"], None, 2),
        ("reasoning_qa", ["[1] 得分是[4]"], 80, 0),
    ],
)
def test_judgements(
    suite: oab.OpenAudioBench, items: SuiteItems, name: str, said: list[str], value: float | None, unclear: int
) -> None:
    judge = ScriptedJudge(*said)
    metric = scored(suite, items, name, ["x{answer}y"] * len(said), judge)[0]
    assert (metric.value, metric.count) == (value, len(said))
    assert (f"{unclear} judgements have no" in (metric.note or "")) == (unclear > 0)
    first = items.of(name)[0]
    assert first.question in judge.requests[0].prompt and "x{answer}y" in judge.requests[0].prompt
    assert first.fields[oab.TABLES[name].answer].strip() in judge.requests[0].prompt or name == "alpaca_eval"


def test_mean_of_the_sets_needs_all(suite: oab.OpenAudioBench) -> None:
    found = {name: [Metric(oab.SCORED if part.rated else oab.JUDGED, 40, 1)] for name, part in oab.TABLES.items()}
    assert suite.summary(found) == [Metric("mean of the sets", 40, 5)]
    assert suite.summary({name: found[name] for name in list(found)[:4]}) == []


def test_files_of_the_evaluation_kit(suite: oab.OpenAudioBench, items: SuiteItems, tmp_path: Path) -> None:
    suite.write_official(tmp_path, items.items, {item.id: StoredAnswer("so") for item in items.items})
    data = [json.loads(line) for line in (tmp_path / "OpenAudioBench/OpenAudioBench.jsonl").open()]
    given = [json.loads(line) for line in (tmp_path / "omnikit_OpenAudioBench.jsonl").open()]
    assert given == [{**line, "prediction": "so", "real_prompt": ""} for line in data]
    assert [line["index"] for line in data] == list(range(10))
    assert data[3]["answer"] == "Wednesday;Tuesday" and data[3]["audio_content"] == "what day comes after monday"
    assert data[3]["question"] == "" and data[3]["subset"] == "web_questions" and Path(data[3]["audio_path"]).is_file()


def test_another_version_is_refused(suite: oab.OpenAudioBench, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no eval_datas/<set>/<set>\.csv with a set of llama_questions"):
        list(suite.read(tmp_path))
    table = tmp_path / "eval_datas" / "llama_questions" / "llama_questions.csv"
    table.parent.mkdir(parents=True)
    table.write_text("question,Answer,audio_filename\na,b,c.mp3\n")
    with pytest.raises(ValueError, match="has no 'Questions'; it has question, Answer, audio_filename"):
        list(suite.read(tmp_path))
    table.write_text("Questions,Answer,audio_filename\na,b\n")
    with pytest.raises(ValueError, match="line 2 has more or fewer fields"):
        list(suite.read(tmp_path))


@pytest.mark.long
def test_the_shipped_system_end_to_end(
    tmp_path: Path, items: SuiteItems, suite: oab.OpenAudioBench, options, shipped, stub
) -> None:
    stub.say = lambda prompt: CORRECT if prompt.splitlines()[-1].startswith(("tuesday", "rome")) else WRONG
    flags = ["--judge_url", stub.url, "--judge_model", "m"]
    evaluate_suite(suite, options("OpenAudioBench", items.folder, tmp_path / "out", *flags), shipped)
    found = json.loads((tmp_path / "out" / "openaudiobench.json").read_text())["sets"]
    tasks = ("T1T2", "A1T2", "A1A2")
    assert [found["llama_questions"][task][oab.CONTAINING]["value"] for task in tasks] == [100, 100, 100]
    assert [found["web_questions"][task][oab.JUDGED]["value"] for task in tasks] == [50, 50, 50]
    assert found["alpaca_eval"]["A1A2"][oab.SCORED]["value"] is None
    assert (tmp_path / "out/official/A1A2/OpenAudioBench/OpenAudioBench.jsonl").is_file()
