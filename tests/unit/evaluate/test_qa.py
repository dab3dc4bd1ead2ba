import json

import pytest
import torch

from omnikit.data.rows import Row
from omnikit.data.skipped import Skipped
from omnikit.evaluate.batches import Reply
from omnikit.evaluate.qa import Way, count_right, read_questions, shares_table, some, write_answers
from omnikit.evaluate.text import plain
from omnikit.strategies import PARALLEL
from omnikit.tasks import TASKS

A1T2 = TASKS["A1T2"]
ROWS = [
    Row("a", "what is one plus one", "one plus one is two", kind="sum"),
    Row("b", "what is two plus one", "two plus one is three", kind="sum"),
    Row("c", "hello", "hello to you", kind="greeting"),
    Row("d", "thank you", "you are welcome", kind="greeting"),
]


def reply(text: str, truncated: bool = False) -> Reply:
    return Reply(text, torch.zeros(3, 2, dtype=torch.long), truncated)


GIVEN = {"a": reply("One plus one is two."), "b": reply("two plus one is four", True), "c": reply("hello to you")}


def test_right_answers_are_counted_by_kind():
    shares = count_right(A1T2, ROWS, GIVEN, Skipped(), plain)
    assert (shares.right, shares.asked) == ({"sum": 1, "greeting": 1}, {"greeting": 1, "sum": 2})
    assert shares.percent == pytest.approx(200 / 3)
    assert (shares.percent_of("sum"), shares.percent_of("day"), shares.truncated) == (50, None, 1)
    assert (shares.exact, shares.containing) == (1, 2)
    assert shares.as_dict()["kinds"]["sum"] == {"right": 1, "asked": 2, "percent": 50}


def test_a_short_expected_answer_may_stand_in_a_sentence():
    """Sets whose answers are single words, as LLaMA Questions."""
    rows = [Row(name, "?", t2) for name, t2 in zip("abcd", ["Paris", "two", "the Nile", "!"], strict=True)]
    given = dict(zip("abcd", map(reply, ["It is Paris.", "twofold", "The Nile!", "none"]), strict=True))
    shares = count_right(A1T2, rows, given, Skipped(), plain)
    assert (sum(shares.right.values()), shares.exact, shares.containing) == (1, 0, 2)
    assert shares.as_dict()["containing_percent"] == 50


def test_text_without_its_speech_is_truncated():
    silent = Reply("yes", torch.zeros(3, 0, dtype=torch.long))
    counts = {
        task: count_right(TASKS[task], ROWS[:1], {"a": silent}, Skipped(), plain).truncated for task in ("A1T2", "A1A2")
    }
    assert counts == {"A1T2": 0, "A1A2": 1}
    assert count_right(TASKS["A1A2"], ROWS[:1], {"a": reply("yes", True)}, Skipped(), plain).truncated == 1
    assert count_right(TASKS["A1A2"], ROWS[:1], {"a": reply("yes")}, Skipped(), plain).truncated == 0


def test_table_has_a_column_for_each_kind_of_any_split():
    whole = count_right(A1T2, ROWS, GIVEN, Skipped(), plain)
    sums = count_right(A1T2, ROWS[:2], GIVEN, Skipped(), plain)
    table = shares_table({"seen": {"text": whole}, "held out": {"text": sums}}).splitlines()
    header = "| Questions, how answered | Asked | Right % | Exact % | Containing % | Truncated % | greeting % | sum % |"
    assert table[0] == header
    assert table[2:] == [
        "| seen, text | 3 | 66.7 | 33.3 | 66.7 | 33.3 | 100.0 | 50.0 |",
        "| held out, text | 2 | 50.0 | 0.0 | 50.0 | 50.0 | - | 50.0 |",
    ]


def test_a_set_of_questions_is_any_manifest(tmp_path):
    (tmp_path / "llama.csv").write_text("ID,t1,t2,a1\n1,which city,Paris,1.wav\n")
    (row,) = read_questions(tmp_path, "llama", tmp_path)
    assert (row.t2, row.a1.path, row.a2) == ("Paris", str(tmp_path / "1.wav"), None)
    (tmp_path / "open.json").write_text('{"1": {"t1": "why"}}')
    with pytest.raises(ValueError, match=r"open\.json: row '1' has no answer"):
        read_questions(tmp_path, "open", tmp_path)
    with pytest.raises(ValueError, match=r"no such file: .*none\.parquet"):
        read_questions(tmp_path, "none", tmp_path)


def test_answers_are_kept_line_by_line(tmp_path):
    write_answers(tmp_path / "answers.jsonl", ROWS, GIVEN)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b", "c"]
    assert lines[1]["right"] == "two plus one is three" and lines[1]["frames"] == 2


def test_nothing_readable_is_an_error():
    with pytest.raises(ValueError, match="no question could be read"):
        count_right(A1T2, ROWS, {}, Skipped(), plain)


def test_a_way_must_answer_questions():
    assert Way.of("written", {"task": "A1T2", "strategy": PARALLEL}).task.name == "A1T2"
    with pytest.raises(ValueError, match=r"--ways.heard.task A1T1.*A1T2.*A1A2"):
        Way.of("heard", {"task": "A1T1", "strategy": PARALLEL})


def test_some_is_the_same_part_each_time():
    assert some(ROWS, None) == ROWS == some(ROWS, 9)
    assert some(ROWS, 2) == some(ROWS, 2) and len({row.id for row in some(ROWS, 2)}) == 2
