"""Tests of Big Bench Audio: both published layouts are read, and rule and judge score as counted by hand."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omnikit.evaluate.suites.answering import StoredAnswer
from omnikit.evaluate.suites.big_bench_audio import BigBenchAudio, parsed
from omnikit.evaluate.suites.items import write_items
from omnikit.evaluate.suites.judges import LLMJudge
from omnikit.evaluate.suites.run import evaluate_suite
from tests.suites.big_bench_audio_miniature import QUESTIONS, write
from tests.suites.conftest import with_prompts
from tests.suites.spoken import spoken


@pytest.mark.parametrize(
    ("category", "text", "answer"),
    [
        ("navigate", "Yes.", "yes"),
        ("navigate", "Yes, you turn around. So the answer is: No!", "no"),
        ("web_of_lies", "Nobody knows", None),
        ("formal_fallacies", "It is Invalid", "invalid"),
        ("formal_fallacies", "the argument is not deductively valid", "invalid"),
        ("formal_fallacies", "the argument isn't valid", "invalid"),
        ("formal_fallacies", "deductively valid", "valid"),
        ("object_counting", "two apples and 3 pears, so five", "5"),
        ("object_counting", "There are 012 of them", "12"),
        ("object_counting", "a lot", None),
        ("object_counting", "", None),
    ],
)
def test_the_rule(category, text, answer):
    assert parsed(category, text) == answer


def test_the_published_layout_is_read(tmp_path):
    suite = BigBenchAudio()
    found = list(suite.read(write(tmp_path / "a", transcripts=False)))
    assert [(item.set, item.references[0]) for item in found] == [question[:2] for question in QUESTIONS]
    assert found[3].id == "formal_fallacies/3" and found[3].question == "" and found[3].fields["id"] == 3
    assert found[3].audio.load(16000).numel() > 8000


def test_the_layout_with_transcripts_is_read(tmp_path):
    (tmp_path / "data").mkdir()
    rows = [
        {"category": c, "official_answer": a, "id": n, "transcript": t, "audio": {"bytes": spoken(t), "path": "x.wav"}}
        for n, (c, a, t) in enumerate(QUESTIONS[:2])
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "train-00000-of-00001.parquet")
    found = list(BigBenchAudio().read(tmp_path))
    assert [item.question for item in found] == [question[2] for question in QUESTIONS[:2]]
    assert found[1].audio.load(16000).numel() > 8000 and "audio" not in found[1].fields


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"category": "snarks", "official_answer": "a", "file_name": "a", "id": 1}', "unknown category 'snarks'"),
        ('{"category": "navigate", "answer": "a", "file_name": "a", "id": 1}', "line 1: has no 'official_answer'"),
        ("[]", "line 1 is no object"),
    ],
)
def test_another_version_is_refused(tmp_path, line, message):
    (tmp_path / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        list(BigBenchAudio().read(tmp_path))


def test_a_folder_without_questions_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds neither metadata\.jsonl nor Parquet files"):
        list(BigBenchAudio().read(tmp_path))


def test_judge_and_rule_are_counted(stub, tmp_path):
    suite = with_prompts(BigBenchAudio)
    items = [item for item in suite.read(write(tmp_path / "a")) if item.set == "web_of_lies"]
    answers = dict(zip([item.id for item in items], map(StoredAnswer, ["yes", "I say yes", "who knows"]), strict=True))
    judge = LLMJudge(stub.url, "m", tmp_path / "j.jsonl")
    stub.say = lambda prompt: "INCORRECT" if "who knows" in prompt else "CORRECT" if "I say" in prompt else "hm"
    found = {metric.name: metric for metric in suite.score(items, answers, judge)}
    assert found["correct by rule %"].value == pytest.approx(100 / 3)
    assert found["unparsable %"].value == pytest.approx(100 / 3) and found["unparsable %"].better == "lower"
    assert found["correct %"].value == pytest.approx(100 / 3)
    assert found["correct %"].note.startswith("1 judgements say neither")
    prompt = next(b["messages"][0]["content"] for b in stub.bodies if "who knows" in b["messages"][0]["content"])
    assert prompt.startswith("Assess whether") and "START QUESTION what is the capital of italy" in prompt
    assert "OFFICIAL ANSWER:No\n\nBEGIN CANDIDATE ANSWER TO ASSESS\n\nwho knows\n\nEND" in prompt
    open_row = suite.score(items, answers, None)[0]
    assert open_row.value is None and "--judge_url" in open_row.note


def test_the_shipped_system_end_to_end(tmp_path, options, shipped):
    suite = with_prompts(BigBenchAudio)
    write_items(tmp_path / "data", suite.name, suite.layout, suite.read(write(tmp_path / "a")))
    text = evaluate_suite(suite, options("BigBenchAudio", tmp_path / "data", tmp_path / "out"), shipped)
    found = json.loads((tmp_path / "out" / "bigbenchaudio.json").read_text())["sets"]["object_counting"]
    assert [found[task]["correct by rule %"]["value"] for task in ("T1T2", "A1T2", "A1A2")] == [100, 100, 100]
    assert "| object_counting, correct by rule % | 3 | 100.00 | 100.00 | 100.00 | 0.00 | 0.00 |" in text
    lines = (tmp_path / "out" / "official" / "A1A2" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["official_answer"] for line in lines] == [question[1] for question in QUESTIONS]
