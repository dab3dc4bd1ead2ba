"""Tests of the LLM judge against a local server: nothing is asked twice, errors pass or stop, and runs are resumed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from omnikit.evaluate.suites.judges import JudgeError, JudgePrompt, JudgeRequest, LLMJudge, read_prompt


@pytest.fixture
def judge(stub, tmp_path):
    return LLMJudge(stub.url, "m", tmp_path / "out" / "judgements.jsonl", key="secret", retries=2, first_wait=0)


def test_requests_are_sent_once_and_stored(stub, judge):
    stub.say = str.upper
    said = judge.ask_all(["a", JudgeRequest("b", system="be strict", max_tokens=3), "a"])
    assert said == ["A", "B", "A"]
    bodies = sorted(stub.bodies, key=json.dumps)
    assert len(bodies) == 2 and all(body["temperature"] == 0 and body["model"] == "m" for body in bodies)
    strict = next(body for body in bodies if "max_tokens" in body)
    assert strict["max_tokens"] == 3 and strict["messages"][0] == {"role": "system", "content": "be strict"}
    assert stub.headers[0]["Authorization"] == "Bearer secret"
    again = LLMJudge(judge.url, "m", judge.cache_file)
    assert again.ask_all(["a"]) == ["A"] and len(stub.bodies) == 2
    assert LLMJudge(judge.url, "other", judge.cache_file).ask("a") == "A" and len(stub.bodies) == 3
    assert "secret" not in repr(judge)


def test_an_error_that_passes_is_tried_again(stub, judge):
    stub.fail = [503, 429]
    assert judge.ask("a") == "CORRECT"


def test_an_error_that_stays_stops_and_the_next_run_goes_on(stub, judge):
    judge.threads = 1
    assert judge.ask("first") == "CORRECT"
    stub.fail = [500] * 3
    with pytest.raises(JudgeError, match=r"tried 3 times; status 500: .*1 judgements are stored, .* goes on") as error:
        judge.ask_all(["first", "second", "third"])
    assert "\n" not in str(error.value)
    assert len(stub.bodies) == 1
    assert LLMJudge(judge.url, "m", judge.cache_file).ask_all(["first", "second", "third"]) == ["CORRECT"] * 3
    assert [body["messages"][0]["content"] for body in stub.bodies].count("first") == 1


def test_a_refusal_is_not_tried_again(stub, judge):
    stub.fail = [401]
    with pytest.raises(JudgeError, match="tried 1 times; status 401"):
        judge.ask("a")


def test_no_server_and_no_chat_completions(stub, judge, tmp_path):
    stub.say = lambda prompt: None
    with pytest.raises(JudgeError, match="the message has no text"):
        judge.ask("a")
    gone = LLMJudge("http://127.0.0.1:9", "m", tmp_path / "j.jsonl", retries=1, first_wait=0)
    with pytest.raises(JudgeError, match=r"http://127.0.0.1:9: no judgement by m \(tried 2 times; .*refused"):
        gone.ask("a")


def test_a_truncated_line_is_removed(stub, judge):
    judge.ask_all(["a", "b"])
    stored = judge.cache_file.read_bytes()
    judge.cache_file.write_bytes(stored[:-5])
    assert LLMJudge(judge.url, "m", judge.cache_file).ask_all(["a", "b"]) == ["CORRECT"] * 2
    assert len(stub.bodies) == 3
    assert sorted(judge.cache_file.read_bytes().splitlines()) == sorted(stored.splitlines())
    judge.cache_file.write_text("what\n")
    with pytest.raises(ValueError, match="line 1 is no judgement"):
        LLMJudge(judge.url, "m", judge.cache_file)


def test_bad_options(tmp_path):
    with pytest.raises(ValueError, match="--judge_url localhost: must begin with http"):
        LLMJudge("localhost", "m", tmp_path / "j")
    with pytest.raises(ValueError, match="--judge_model: is missing"):
        LLMJudge("http://localhost", "", tmp_path / "j")


def test_a_prompt_is_filled_once_and_its_header_is_not_sent(tmp_path):
    (tmp_path / "p.txt").write_text("# Source: a paper,\n# MIT\nQ {q} {x} {a}\n\nend {q}\n")
    prompt = read_prompt(tmp_path / "p.txt")
    assert prompt.source == "Source: a paper, MIT"
    assert prompt.fill(q="{a}", a="{q}") == "Q {a} {x} {q}\n\nend {a}"
    assert prompt.digest != replace(prompt, text="other").digest
    with pytest.raises(ValueError, match=r"prompt p: has no place \{b\}"):
        prompt.fill(b="1")
    with pytest.raises(ValueError, match=r"q\.txt: no such file \(choices: p\)"):
        read_prompt(tmp_path / "q.txt")
    (tmp_path / "q.txt").write_text("no source\n")
    with pytest.raises(ValueError, match=r"needs a first line `# Source: \.\.`"):
        read_prompt(tmp_path / "q.txt")
    assert JudgePrompt("n", "a {b}", "s").fill(b="{b}") == "a {b}"
