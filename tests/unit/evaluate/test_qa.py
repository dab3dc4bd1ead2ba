import json

import pytest
import torch

from omnikit.data.rows import Row
from omnikit.data.skipped import Skipped
from omnikit.evaluate.batches import Reply
from omnikit.evaluate.qa import Way, count_right, shares_table, some, write_answers
from omnikit.evaluate.text import plain
from omnikit.strategies import PARALLEL

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
    shares = count_right(ROWS, GIVEN, Skipped(), plain)
    assert (shares.right, shares.asked) == ({"sum": 1, "greeting": 1}, {"greeting": 1, "sum": 2})
    assert shares.percent == pytest.approx(200 / 3)
    assert (shares.percent_of("sum"), shares.percent_of("day"), shares.truncated) == (50, None, 1)
    assert shares.as_dict()["kinds"]["sum"] == {"right": 1, "asked": 2, "percent": 50}


def test_table_has_a_column_for_each_kind_of_any_split():
    whole = count_right(ROWS, GIVEN, Skipped(), plain)
    sums = count_right(ROWS[:2], GIVEN, Skipped(), plain)
    table = shares_table({"seen": {"text": whole}, "held out": {"text": sums}}).splitlines()
    assert table[0] == "| Questions, how answered | Asked | Right % | greeting % | sum % |"
    assert table[2:] == ["| seen, text | 3 | 66.7 | 100.0 | 50.0 |", "| held out, text | 2 | 50.0 | - | 50.0 |"]


def test_answers_are_kept_line_by_line(tmp_path):
    write_answers(tmp_path / "answers.jsonl", ROWS, GIVEN)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b", "c"]
    assert lines[1]["right"] == "two plus one is three" and lines[1]["frames"] == 2


def test_nothing_readable_is_an_error():
    with pytest.raises(ValueError, match="no question could be read"):
        count_right(ROWS, {}, Skipped(), plain)


def test_a_way_must_answer_questions():
    assert Way.of("written", {"task": "A1T2", "strategy": PARALLEL}).task.name == "A1T2"
    with pytest.raises(ValueError, match=r"--ways.heard.task A1T1.*A1T2.*A1A2"):
        Way.of("heard", {"task": "A1T1", "strategy": PARALLEL})


def test_some_is_the_same_part_each_time():
    assert some(ROWS, None) == ROWS == some(ROWS, 9)
    assert some(ROWS, 2) == some(ROWS, 2) and len({row.id for row in some(ROWS, 2)}) == 2
