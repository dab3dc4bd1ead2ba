"""Tests of URO-Bench: its layout is read, scores equal hand-computed ones, and its scripts' files are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omnikit.evaluate.suites.answering import StoredAnswer
from omnikit.evaluate.suites.items import some_items
from omnikit.evaluate.suites.judges import LLMJudge
from omnikit.evaluate.suites.run import evaluate_suite
from omnikit.evaluate.suites.spoken_answers import is_hallucinated
from omnikit.evaluate.suites.suite import Metric
from omnikit.evaluate.suites.urobench import UROBench
from omnikit.evaluate.suites.urobench_scores import (
    corpus_rate,
    mean_rate,
    rating_of,
    repetition,
    token_errors,
    verdict_of,
)
from omnikit.evaluate.suites.urobench_sets import SETS, TRACKS
from tests.suites.conftest import prepare_miniature, with_prompts
from tests.suites.urobench_miniature import DIALOG, write

NAME = "URO-Bench"
DIALOG_SET = "MtBenchEval-en"


@pytest.fixture(scope="module")
def suite():
    return with_prompts(UROBench)


@pytest.fixture(scope="module")
def data(tmp_path_factory, suite):
    return prepare_miniature(suite, write, tmp_path_factory.mktemp("uro"))


def answered(items, *texts: str, heard: bool = False) -> dict[str, StoredAnswer]:
    return {item.id: StoredAnswer(text, heard=text if heard else None) for item, text in zip(items, texts, strict=True)}


def by_name(metrics: list[Metric]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


def test_the_published_layout_is_read(data):
    assert data.sets == tuple(name for name in SETS if name in set(data.sets)) and len(data.items) == 10
    assert data.of("MLC")[0].references == ("five", "5") and data.of("Repeat")[1].references == ()
    assert [item.language for item in data.items if item.set in ("MLC", "Repeat-zh", "Multilingual")] == [
        "en", "en", "zh", "",
    ]  # fmt: skip
    rounds = data.of(DIALOG_SET)
    assert [(item.dialog, item.turn, item.question) for item in rounds] == [
        ("MtBenchEval-en/0000", 0, DIALOG[0]), ("MtBenchEval-en/0000", 1, DIALOG[1]),
    ]  # fmt: skip
    entry = json.loads(data.manifest.read_text().splitlines()[-1])
    assert (entry["dialog"], entry["turn"], entry["language"]) == ("MtBenchEval-en/0000", 1, "en")
    assert all(item.audio.load(16000).numel() > 5000 for item in data.items)


def test_the_sets_are_those_of_the_leaderboard():
    assert len(SETS) == 40 and TRACKS == ("basic en", "basic zh", "pro en", "pro zh")
    assert [sum(each.track == track for each in SETS.values()) for track in TRACKS] == [10, 10, 12, 8]


def test_a_conversation_is_drawn_as_a_whole(data):
    assert some_items(data.of(DIALOG_SET), 1) == data.of(DIALOG_SET) and len(some_items(data.of("MLC"), 1)) == 1


def test_characters_count_where_there_are_no_spaces():
    assert is_hallucinated("你 好", "你好你好吗", "zh") and not is_hallucinated("你 好", "你好你好吗")


@pytest.mark.parametrize(
    ("place", "row", "message"),
    [
        ("basic/Repeat", {"source_wav": "a.wav"}, "test.jsonl: line 1: has no 'source_text'"),
        ("pro/GenStyle-en", {"source_wav": "a.wav", "source_text": "a"}, "has no 'style'"),
        ("pro/SpeakerAware-zh", {"id": 0, "dialogue": []}, "line 1 has no rounds"),
        ("pro/SpeakerAware-zh", {"id": "../a", "dialogue": [{}]}, "is no name of a folder"),
        ("pro/SpeakerAware-zh", {"id": 0, "dialogue": [{"round": 0}]}, "line 1, round 0: has no 'source_wav'"),
    ],
)
def test_another_version_is_refused(tmp_path, suite, place, row, message):
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "test.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        list(suite.read(tmp_path))


def test_a_folder_without_levels_is_refused(tmp_path, suite):
    with pytest.raises(ValueError, match="holds none of the folders basic, pro"):
        list(suite.read(tmp_path))
    (tmp_path / "URO-Bench-data.zip").touch()
    with pytest.raises(ValueError, match=r"URO-Bench-data\.zip: is packed; unpack it"):
        list(suite.read(tmp_path))


def test_error_rates_are_means_of_utterances_and_of_the_corpus():
    pairs = [("forty two cats", "42 dogs"), ("a color", "a colour seen"), ("?!", "who"), ("one cat", "")]
    errors = [token_errors(*pair, "en") for pair in pairs]
    assert [(each.errors, each.tokens) for each in errors] == [(1, 2), (1, 2), (1, 0), (2, 2)]
    few = errors[1:]
    assert mean_rate([[each] for each in few]) == pytest.approx(100 * (1 / 2 + 1 + 1) / 3)  # the empty reference is 1
    assert mean_rate([few[:2], few[2:]]) == pytest.approx(100 * ((1 / 2 + 1) / 2 + 1) / 2)
    assert corpus_rate(few) == pytest.approx(100 * 4 / 4)


def test_repetitions_are_scored_relative_to_the_answer():
    text = "red blue green cat"
    found = repetition([text, text, "dog"], ["red blue", "red blue green", "bird"], "en")
    assert (found.repeated, found.rate) == (pytest.approx(100 / 3), pytest.approx(100 / 3))  # `red blue` has rate 1
    assert found.score == pytest.approx(100 / 3 * 2 / 3)
    assert repetition(["dog"], ["bird"], "en").score == 0


def test_chinese_is_scored_by_characters_with_numbers_as_numerals():
    pytest.importorskip("cn2an")
    errors = token_errors("今天有3个人。", "今天有 三个“人”吗", "zh")  # the space counts, as in the project
    assert (errors.errors, errors.tokens) == (2, 6)


@pytest.mark.parametrize(
    ("said", "rating", "verdict"),
    [("4", 4, None), (" Score: 5.", 5, None), ("Yes", None, True), ("**No**.", None, False)],
)
def test_judgements_are_read(said, rating, verdict):
    assert (rating_of(said), verdict_of(said)) == (rating, verdict)


def test_a_set_of_repetitions(suite, data):
    items = data.of("Repeat")
    found = by_name(suite.score(items, answered(items, "What colour is snow", "two", heard=True), None))
    assert (found["score"].value, found["repeated %"].value, found["WER of repetitions %"].value) == (50, 50, 0)
    assert found["WER against the question %, corpus"].value == 50  # 4 of `what color is snow what is 1 +1`
    assert found["ASR-WER %"].value == found["ASR-WER %, corpus"].value == 0
    assert "ASR-WER %" not in by_name(suite.score(items, answered(items, "a", "b"), None))


def test_judged_sets(suite, data, stub, tmp_path):
    judge = LLMJudge(stub.url, "m", tmp_path / "j.jsonl")
    stub.say = lambda prompt: "Yes" if "Yes" in prompt else "3"
    items = data.of("MLC")
    found = suite.score(items, answered(items, "it is five", " "), judge)
    assert (found[0].name, found[0].value, found[0].count) == ("score", 50, 2)  # nothing is asked about silence
    (body,) = stub.bodies
    assert body["messages"][0] == {"role": "system", "content": "You are a helpful assistant."}
    prompt = body["messages"][1]["content"]
    assert "### [Response]\n    it is five\n\n    ### [Reference]\n    five / 5\n" in prompt
    assert body["temperature"] == 0
    items = data.of("UnderEmotion-en")
    assert suite.score(items, answered(items, "oh no"), judge)[0].value == 60
    assert "### [Emotion]\n    sad\n" in stub.bodies[-1]["messages"][1]["content"]
    items = data.of("Multilingual")
    assert suite.score(items, answered(items, "le ciel", heard=True), judge)[0].value == 60
    assert "### [Requirement]\n    French\n" in stub.bodies[-1]["messages"][1]["content"]
    items = data.of(DIALOG_SET)
    (score,) = suite.score(items, answered(items, "four", "nine"), judge)
    assert (score.value, score.count) == (60, 1)
    assert "{" not in stub.bodies[-1]["messages"][1]["content"]
    assert f"### [Response]\n    nine\n    ### [Reference]\n    answer to {DIALOG[1]}\n" in (
        stub.bodies[-1]["messages"][1]["content"]
    )
    assert suite.score(items[:1], answered(items[:1], "four"), judge)[0].value is None  # a part of a conversation
    assert "--judge_url" in suite.score(items, answered(items, "four", "nine"), None)[0].note
    items = data.of("GenEmotion-en")
    assert "emotion2vec" in suite.score(items, answered(items, "hello"), judge)[0].note


def test_tracks_are_means_of_their_sets(suite):
    basic = [name for name, each in SETS.items() if each.track == "basic en"]
    metrics = {name: [Metric("score", number, 10)] for number, name in enumerate(basic)}
    assert [(m.name, m.value) for m in suite.summary(metrics)] == [("score, basic en", 4.5)]
    metrics = {name: [*each, Metric("ASR-WER %", 5.0, 10)] for name, each in metrics.items()}
    assert [(m.name, m.value) for m in suite.summary(metrics)][1] == ("ASR-WER %, basic en", 5)
    del metrics["MLC"]
    (score, _) = suite.summary(metrics)
    assert score.value is None and score.note == "open: without MLC"


def test_files_for_the_projects_scripts(suite, data, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    answers = {item.id: StoredAnswer(f"text {n}", None, f"heard {n}") for n, item in enumerate(data.items)}
    answers[data.of("MLC")[1].id] = StoredAnswer("t", tmp_path / "a.wav", "h")
    answers[data.of(DIALOG_SET)[1].id] = StoredAnswer("u ", tmp_path / "a.wav", "")
    for _ in range(2):  # the second time replaces the first
        suite.write_official(tmp_path / "out", data.items, answers)
    folder = tmp_path / "out" / "basic" / "MLC"
    assert rows(folder / "pred_text.jsonl")[1] == {"0001": "t"} and rows(folder / "asr_text.jsonl")[1] == {"0001": "h"}
    assert rows(folder / "gt_text.jsonl")[0] == {"0000": "five / 5"}
    repeat = tmp_path / "out" / "basic" / "Repeat" / "gt_text.jsonl"
    assert rows(repeat)[1] == {"0001": "what is one plus one"}  # the question, where there is no reference
    assert rows(folder / "question_text.jsonl")[0] == {"0000": "what is two plus three"}
    assert [path.name for path in (folder / "audio").iterdir()] == ["0001.wav"]
    assert rows(folder / "test.jsonl")[0]["target_text"] == ["five", "5"]
    folder = tmp_path / "out" / "pro" / DIALOG_SET
    (row,) = rows(folder / "output_with_text.jsonl")
    assert (row["id"], row["num_round"], row["dialogue"][1]["output_text"]) == (7, 2, "u")
    assert rows(folder / "asr_text.jsonl")[0]["dialogue"][1]["output_text"] == " "
    assert (folder / "7" / "chat_1.wav").read_bytes() == b"RIFF" and not (folder / "7" / "chat_0.wav").exists()


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_shipped_system_end_to_end(tmp_path, data, suite, options, shipped):
    sets = f"[Repeat,{DIALOG_SET}]"
    hparams = options(NAME, data.folder, tmp_path, "--sets", sets, "--tasks", "[A1T2,A1A2]")
    text = evaluate_suite(suite, hparams, shipped)
    found = json.loads((tmp_path / "uro-bench.json").read_text())["sets"]
    assert "score, basic en" in text and found["Repeat"]["A1T2"]["repeated %"]["value"] == 0
    assert found[DIALOG_SET]["A1A2"]["score"]["count"] == 1
    (row,) = rows(tmp_path / "official" / "A1A2" / "pro" / DIALOG_SET / "output_with_text.jsonl")
    assert all(turn["output_text"] for turn in row["dialogue"])
    assert (tmp_path / "official" / "A1A2" / "pro" / DIALOG_SET / "7" / "chat_1.wav").is_file()
    assert (tmp_path / "official" / "A1A2" / "basic" / "Repeat" / "audio" / "0001.wav").is_file()
