"""Tests of an evaluation on a suite: figures and gaps as counted by hand, rescoring, resuming, sharing, bad input."""

from __future__ import annotations

import json

import pytest

from omnikit.evaluate.suites.big_bench_audio import BigBenchAudio
from omnikit.evaluate.suites.items import write_items
from omnikit.evaluate.suites.judges import JudgeError
from omnikit.evaluate.suites.run import evaluate_suite
from omnikit.evaluate.suites.spoken_answers import is_hallucinated
from omnikit.evaluate.suites.suite import Metric, Published
from omnikit.evaluate.suites.tables import fitting, gap
from omnikit.offline.batches import Problem
from tests.suites.big_bench_audio_miniature import write
from tests.suites.conftest import prepare_miniature, with_prompts

NAME = "BigBenchAudio"
RIGHT = {
    "object_counting/0": "four", "object_counting/1": "it is 5", "object_counting/2": "nine",
    "formal_fallacies/3": "valid", "formal_fallacies/4": "not valid", "navigate/5": "yes", "navigate/6": "no",
    "web_of_lies/7": "yes", "web_of_lies/8": "no", "web_of_lies/9": "no",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bba")
    suite = BigBenchAudio()
    prepare_miniature(suite, write, folder)
    return folder / "data"


@pytest.fixture
def suite():
    return with_prompts(BigBenchAudio)


@pytest.fixture
def listening(monkeypatch):
    """Replace recognisers by one that hears what a list says, in the order of the questions, and then nothing."""
    heard = []

    class Heard:
        def transcribe(self, wav, rate, language=""):
            heard_now.append(len(wav))
            return heard[len(heard_now) - 1] if len(heard_now) <= len(heard) else ""

    heard_now = []
    monkeypatch.setattr("omnikit.evaluate.suites.run.open_judge", lambda *_: Heard())
    return heard, heard_now


def results(out):
    return json.loads((out / "bigbenchaudio.json").read_text())


def values(out, metric, name="all"):
    return {task: metrics[metric]["value"] for task, metrics in results(out)["sets"][name].items() if metric in metrics}


def test_figures_and_gaps_are_those_counted_by_hand(tmp_path, data, suite, options, scripted, listening):
    heard, _ = listening
    heard += ["four", "it is 5", "nine", "valid", "not valid", "yes", "yes", "yes", "no no no no no"]
    candidate, _ = scripted({**RIGHT, "navigate/5": "no", "navigate/6": Problem("refused", "too much")})
    hparams = options(NAME, data, tmp_path / "out", "--judge", "whisper_tiny")
    text = evaluate_suite(suite, hparams, candidate)
    assert values(tmp_path / "out", "correct by rule %", "navigate") == {"T1T2": 0, "A1T2": 0, "A1A2": 50}
    assert values(tmp_path / "out", "correct by rule %", "web_of_lies") == {
        "T1T2": 100, "A1T2": 100, "A1A2": pytest.approx(200 / 3, abs=1e-3),
    }  # fmt: skip
    assert values(tmp_path / "out", "unparsable %", "navigate")["A1A2"] == 50
    found = results(tmp_path / "out")
    assert found["gaps"]["web_of_lies"]["gap of speaking"]["correct by rule %"] == pytest.approx(100 / 3)
    assert found["gaps"]["web_of_lies"]["gap of hearing"]["correct by rule %"] == 0
    # of yes, no, no it heard yes, yes, and five times no: one substitution and four insertions
    assert values(tmp_path / "out", "WER of speech %", "web_of_lies") == {"A1A2": pytest.approx(500 / 3, abs=1e-3)}
    assert values(tmp_path / "out", "hallucinated %", "web_of_lies") == {"A1A2": pytest.approx(100 / 3, abs=1e-3)}
    assert found["protocol"]["recogniser"] == "whisper_tiny" and found["protocol"]["checkpoint"] == "a"
    assert "correct %" in text and "open" in text and "--judge_url" in text
    assert "| web_of_lies, correct by rule % | 3 | 100.00 | 100.00 | 66.67 | 0.00 | 33.33 |" in text


def test_stored_answers_are_scored_again_without_a_system(tmp_path, data, suite, options, scripted, stub):
    candidate, answerer = scripted(RIGHT)
    out = tmp_path / "out"
    evaluate_suite(suite, options(NAME, data, out), candidate)
    assert len(answerer.asked) == 30
    broken = scripted({})[0]
    judged = ("--judge_url", stub.url, "--judge_model", "m")
    evaluate_suite(suite, options(NAME, data, out, "--rescore", "true", *judged), broken)
    assert values(out, "correct %") == {"T1T2": 100, "A1T2": 100, "A1A2": 100}
    assert len(stub.bodies) == 10  # all tasks have the same answers, which are judged once
    evaluate_suite(suite, options(NAME, data, out, *judged), scripted(RIGHT)[0])  # nothing is left to answer
    assert len(stub.bodies) == 10
    assert results(out)["protocol"]["llm_judge"] == "m" and results(out)["protocol"]["prompts"].keys() == {"correct"}
    with pytest.raises(ValueError, match="checkpoint was a, is b") as error:
        evaluate_suite(suite, options(NAME, data, out), scripted(RIGHT, "b")[0])
    assert "--output_folder" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="checkpoint was a, is b"):
        hparams = options(NAME, data, out, "--rescore", "true", "--checkpoint", "b")
        evaluate_suite(suite, hparams, scripted({}, "b")[0])


def test_a_killed_run_goes_on(tmp_path, data, suite, options, scripted):
    out = tmp_path / "out"
    killed, first = scripted({key: RIGHT[key] for key in list(RIGHT)[:4]})
    hparams = options(NAME, data, out, "--batch_size", "1", "--tasks", "[T1T2]")
    with pytest.raises(KeyError):
        evaluate_suite(suite, hparams, killed)
    with pytest.raises(ValueError, match=r"has answers to \d of 10 questions; .* without --rescore goes on"):
        evaluate_suite(suite, options(NAME, data, out, "--tasks", "[T1T2]", "--rescore", "true"), killed)
    candidate, second = scripted(RIGHT)
    evaluate_suite(suite, hparams, candidate)
    assert sorted({name for _, name in first.asked[:-1]} | {name for _, name in second.asked}) == sorted(RIGHT)
    assert len(second.asked) == 11 - len(first.asked)
    assert values(out, "correct by rule %") == {"T1T2": 100}


def test_an_unreachable_judge_stops_the_run_and_the_next_one_goes_on(tmp_path, data, suite, options, scripted, stub):
    out, judged = tmp_path / "out", ("--judge_url", stub.url, "--judge_model", "m", "--judge_threads", "1")
    stub.fail = []
    stub.say = lambda prompt: "CORRECT" if stub.fail.append(401) is None else ""  # all requests after the first fail
    with pytest.raises(JudgeError, match="1 judgements are stored, the same command goes on"):
        evaluate_suite(suite, options(NAME, data, out, *judged), scripted(RIGHT)[0])
    stub.fail, stub.say = [], lambda prompt: "CORRECT"
    candidate, answerer = scripted(RIGHT)
    evaluate_suite(suite, options(NAME, data, out, *judged), candidate)
    assert answerer.asked == [] and len(stub.bodies) == 10
    assert values(out, "correct %")["T1T2"] == 100


def test_processes_share_questions_and_transcripts(tmp_path, data, suite, options, scripted, listening, monkeypatch):
    out, (_, heard) = tmp_path / "out", listening
    hparams = options(NAME, data, out, "--judge", "whisper_tiny")
    monkeypatch.setenv("WORLD_SIZE", "2")

    def process(rank):
        candidate, answerer = scripted(RIGHT)
        monkeypatch.setenv("RANK", str(rank))
        return evaluate_suite(suite, hparams, candidate), len(answerer.asked)

    with monkeypatch.context() as alone:  # one after the other, so neither waits for the other
        alone.setattr("omnikit.evaluate.suites.run.wait_for_answers", lambda *_: None)
        alone.setattr("omnikit.evaluate.suites.stored_outputs.StoredOutputs.wait", lambda *_: {})
        assert process(1) == (None, 15)
        assert process(0)[1] == 15
    assert process(1) == (None, 0)
    text, asked = process(0)
    assert text.startswith("# BigBenchAudio") and asked == 0
    assert len(heard) == 10
    names = [path.name.partition(".")[0] for path in (out / "answers" / "A1A2").glob("*.jsonl")]
    assert sorted(names) == ["results", "results", "transcripts", "transcripts"]


def test_missing_sets_and_questions_are_said(tmp_path, data, suite, options, scripted):
    hparams = options(NAME, data, tmp_path / "out", "--sets", "[navigate, web_of_lies]", "--limit", "2")
    text = evaluate_suite(suite, hparams, scripted(RIGHT)[0])
    assert values(tmp_path / "out", "correct by rule %") == {"T1T2": None, "A1T2": None, "A1A2": None}
    assert "open: without formal_fallacies, object_counting" in text
    assert "sets left out: object_counting, formal_fallacies" in text and "at most 2 questions of each set" in text
    assert values(tmp_path / "out", "correct by rule %", "navigate")["T1T2"] == 100


def test_questions_without_a_transcript_are_not_asked_in_writing(tmp_path, suite, options, scripted):
    write_items(tmp_path / "data", suite.name, suite.layout, suite.read(write(tmp_path / "p", transcripts=False)))
    candidate, answerer = scripted(RIGHT)
    text = evaluate_suite(suite, options(NAME, tmp_path / "data", tmp_path / "out"), candidate)
    assert {task for task, _ in answerer.asked} == {"A1T2", "A1A2"}
    assert "T1T2: 10 questions without an answer (no text)" in text
    assert values(tmp_path / "out", "correct by rule %", "navigate") == {"T1T2": None, "A1T2": 100, "A1A2": 100}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "[A1T1]"], "--tasks A1T1: must be a list, of T1T2, A1T2, A1A2"),
        (["--tasks", "A1T2"], r"--tasks A1T2: must be a list, such as \[A1T2\]"),
        (["--sets", "[snarks]"], r"--sets snarks: no such set \(choices: object_counting, "),
        (["--judge", "siri"], "--judge siri: no such judge"),
        (["--mos", "ears"], r"--mos ears: unknown \(choices: utmos\)"),
        (["--judge_model", "m"], "--judge_model m: --judge_url is missing"),
        (["--judge_url", "http://localhost"], "--judge_model: is missing"),
        (["--judge_url", "http://x", "--judge_model", "m", "--judge_key", "NO_KEY"], "--judge_key NO_KEY: no such env"),
        (["--rescore", "maybe"], "--rescore maybe: must be true or false"),
        (["--rescore", "true"], "--rescore: no answers are stored in"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(tmp_path, data, suite, options, scripted, flags, message):
    candidate, answerer = scripted(RIGHT)
    with pytest.raises(ValueError, match=message) as error:
        evaluate_suite(suite, options(NAME, data, tmp_path / "out", *flags), candidate)
    assert "\n" not in str(error.value) and answerer.asked == []


def test_a_gap_is_what_gets_worse():
    assert gap(Metric("m", 60, 5), Metric("m", 50, 5)) == 10
    assert gap(Metric("m", 10, 5, None, "lower"), Metric("m", 15, 5, None, "lower")) == 5
    assert gap(Metric("m", None, 5), Metric("m", 50, 5)) is None and gap(None, Metric("m", 50, 5)) is None
    assert gap(Metric("m", 60, 5), Metric("m", 50, 4)) is None


def test_published_figures_stand_beside_the_same_protocol_only():
    ours = {"s": {"A1T2": [Metric("m", 50, 100)]}}
    published = Published("Mini-Omni", "s", "m", "A1T2", 30.0, 100, "a paper", {"llm_judge": "gpt-4o"})
    assert fitting(published, ours, {"llm_judge": "gpt-4o"})
    assert not fitting(published, ours, {"llm_judge": "other"})
    assert not fitting(published, {"s": {"A1T2": [Metric("m", 50, 99)]}}, {"llm_judge": "gpt-4o"})
    assert not fitting(published, {"s": {"A1A2": [Metric("m", 50, 100)]}}, {"llm_judge": "gpt-4o"})


@pytest.mark.parametrize(
    ("spoken", "heard", "found"),
    [("four", "four", False), ("four", "it is a four", True), ("four", "is it four", False), ("", "a b c", True),
     ("a b c d e f g h", "a b c d e f g h i j k", False), ("a b c d e f g h", "a b c d e f g h i j k l", True)],
)  # fmt: skip
def test_hallucination_is_many_more_words(spoken, heard, found):
    assert is_hallucinated(spoken, heard) == found
