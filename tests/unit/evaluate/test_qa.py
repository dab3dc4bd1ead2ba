import json

import pytest
import torch

from omnikit.data.manifest_reader import ManifestEntry
from omnikit.data.manifest_writer import ManifestWriter
from omnikit.data.skipped import Skipped
from omnikit.evaluate.qa import AnswerMode, contains_one, count_right, qa_table, read_questions, some, write_answers
from omnikit.evaluate.text_normalisation import plain
from omnikit.offline.batches import DecodedAnswer
from omnikit.strategies import BATCH_PARALLEL, PARALLEL
from omnikit.tasks import TASKS

A1T2 = TASKS["A1T2"]
ROWS = [
    ManifestEntry("a", "what is one plus one", "one plus one is two", kind="sum"),
    ManifestEntry("b", "what is two plus one", "two plus one is three", kind="sum"),
    ManifestEntry("c", "hello", "hello to you", kind="greeting"),
    ManifestEntry("d", "thank you", "you are welcome", kind="greeting"),
]


def reply(text: str, truncated: bool = False) -> DecodedAnswer:
    return DecodedAnswer(text, torch.zeros(3, 2, dtype=torch.long), truncated)


GIVEN = {"a": reply("One plus one is two."), "b": reply("two plus one is four", True), "c": reply("hello to you")}


def test_right_answers_are_counted_by_kind():
    shares = count_right(A1T2, ROWS, GIVEN, Skipped(), plain)
    assert (shares.right, shares.asked) == ({"sum": 1, "greeting": 1}, {"greeting": 1, "sum": 2})
    assert shares.percent == pytest.approx(200 / 3)
    assert (shares.percent_of("sum"), shares.percent_of("day"), shares.truncated) == (50, None, 1)
    assert (shares.exact, shares.containing) == (1, 2)
    assert shares.as_dict()["kinds"]["sum"] == {"right": 1, "asked": 2, "percent": 50}


def test_a_short_expected_answer_may_stand_in_a_sentence():
    """A sentence that contains a short reference answer, as in LLaMA Questions, is counted as containing it."""
    entries = [ManifestEntry(name, "?", t2) for name, t2 in zip("abcd", ["Paris", "two", "the Nile", "!"], strict=True)]
    given = dict(zip("abcd", map(reply, ["It is Paris.", "twofold", "The Nile!", "none"]), strict=True))
    shares = count_right(A1T2, entries, given, Skipped(), plain)
    assert (sum(shares.right.values()), shares.exact, shares.containing) == (1, 0, 2)
    assert shares.as_dict()["containing_percent"] == 50


def test_a_text_of_which_nothing_is_left_is_right_only_as_it_stands():
    entries = [ManifestEntry(name, "?", t2) for name, t2 in zip("abc", ["...", "+", "?"], strict=True)]
    given = dict(zip("abc", map(reply, ["", "+ ", "!"]), strict=True))
    shares = count_right(A1T2, entries, given, Skipped(), plain)
    assert (sum(shares.right.values()), shares.exact, shares.containing) == (1, 1, 1)


def test_text_without_its_speech_is_truncated():
    silent = DecodedAnswer("yes", torch.zeros(3, 0, dtype=torch.long))
    counts = {
        task: count_right(TASKS[task], ROWS[:1], {"a": silent}, Skipped(), plain).truncated for task in ("A1T2", "A1A2")
    }
    assert counts == {"A1T2": 0, "A1A2": 1}
    assert count_right(TASKS["A1A2"], ROWS[:1], {"a": reply("yes", True)}, Skipped(), plain).truncated == 1
    assert count_right(TASKS["A1A2"], ROWS[:1], {"a": reply("yes")}, Skipped(), plain).truncated == 0


def test_table_has_a_column_for_each_kind_of_any_split():
    whole = count_right(A1T2, ROWS, GIVEN, Skipped(), plain)
    sums = count_right(A1T2, ROWS[:2], GIVEN, Skipped(), plain)
    table = qa_table({"seen": {"text": whole}, "held out": {"text": sums}}).splitlines()
    header = "| Questions, how answered | Asked | Right % | Exact % | Containing % | Truncated % | greeting % | sum % |"
    assert table[0] == header
    assert table[2:] == [
        "| seen, text | 3 | 66.7 | 33.3 | 66.7 | 33.3 | 100.0 | 50.0 |",
        "| held out, text | 2 | 50.0 | 0.0 | 50.0 | 50.0 | - | 50.0 |",
    ]


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_any_of_the_accepted_answers_is_right(ending, tmp_path):
    """A generated answer that equals any of an entry's accepted answers is right, in each manifest format."""
    path = tmp_path / f"llama.{ending}"
    written = [
        {"id": "1", "t1": "which city", "a1": "1.wav", "accepted": ["Paris", "the city of Paris"]},
        {"id": "2", "t1": "how many", "a1": "2.wav", "accepted": ["2", "two"]},
        {"id": "3", "t1": "which letter", "a1": "3.wav", "t2": "a|b"},
    ]
    with ManifestWriter(path, ["id", "t1", "t2", "accepted", "a1"]) as writer:
        writer.write(written)
    entries = read_questions("llama", {"manifest": path}, tmp_path / "cache")
    assert [entry.accepted for entry in entries] == [("Paris", "the city of Paris"), ("2", "two"), ()]
    assert not any(entry.serves(task) for entry in entries[:2] for task in TASKS.values() if task.text_mark == "answer")
    given = {"1": reply("The city of Paris!"), "2": reply("There are two."), "3": reply("a|b")}
    shares = count_right(A1T2, entries, given, Skipped(), plain)
    assert (shares.right, shares.exact, shares.containing) == ({"": 2}, 1, 3)
    assert shares.as_dict()["kinds"] == {}
    assert qa_table({"llama": {"text": shares}}).splitlines()[0].endswith("| Truncated % |")


def test_answers_contain_words_or_characters_by_their_language():
    entries = [
        ManifestEntry("1", "哪个城市", language="zh", t2="北京"),
        ManifestEntry("2", "where", language="en", t2="an art"),
    ]
    given = {"1": reply("答案是北 京。"), "2": reply("an artist")}
    assert count_right(A1T2, entries, given, Skipped(), plain).containing == 1
    assert not contains_one("答案是北京", ["北京"], plain) and contains_one("答案是北京", ["北京"], plain, "zh")


def test_accepted_answers_of_a_text_have_bars_between_them(tmp_path):
    (tmp_path / "m.csv").write_text("ID,t1,a1,accepted\n1,which city,1.wav, Paris | paris||\n")
    (tmp_path / "m.json").write_text('{"1": {"t1": "how many", "accepted": "4|four"}, "2": {"t1": "?", "accepted": 7}}')
    assert read_questions("q", {"manifest": tmp_path / "m.csv"}, tmp_path)[0].accepted == ("Paris", "paris")
    entries = read_questions("q", {"manifest": tmp_path / "m.json"}, tmp_path)
    assert [entry.reference_answers() for entry in entries] == [("4", "four"), ("7",)]


def test_questions_without_an_answer_are_told(tmp_path):
    (tmp_path / "open.json").write_text('{"1": {"t1": "why"}}')
    with pytest.raises(ValueError, match=r"open\.json: entry '1' has no answer \(t2 or accepted\)"):
        read_questions("open", {"manifest": tmp_path / "open.json"}, tmp_path)
    with pytest.raises(ValueError, match=r"no such file: .*none\.csv"):
        read_questions("none", {"manifest": tmp_path / "none.csv"}, tmp_path)


def test_answers_are_kept_line_by_line(tmp_path):
    write_answers(tmp_path / "answers.jsonl", ROWS, GIVEN)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b", "c"]
    assert lines[1]["right"] == ["two plus one is three"] and lines[1]["frames"] == 2


def test_nothing_readable_is_an_error():
    with pytest.raises(ValueError, match="no question could be read"):
        count_right(A1T2, ROWS, {}, Skipped(), plain)


def test_a_way_must_answer_questions():
    assert AnswerMode.of("written", {"task": "A1T2", "strategy": PARALLEL}).task.name == "A1T2"
    with pytest.raises(ValueError, match=r"--answer_modes.heard.task A1T1.*A1T2.*A1A2"):
        AnswerMode.of("heard", {"task": "A1T1", "strategy": PARALLEL})
    named = [AnswerMode.of("spoken", {"task": "A1A2", **more}) for more in ({}, {"strategy": "batch_parallel"})]
    assert [mode.strategy for mode in named] == [PARALLEL, BATCH_PARALLEL]
    with pytest.raises(ValueError, match=r"delayed.*choices: .*parallel"):
        AnswerMode.of("spoken", {"task": "A1A2", "strategy": "delayed"})
    for options in ("A1A2", None, {}, {"strategy": PARALLEL}, {"task": "A1A2", "mode": "parallel"}):
        with pytest.raises(ValueError, match=r"--answer_modes.spoken .*must be a mapping with a task"):
            AnswerMode.of("spoken", options)
    left = AnswerMode.all_of({"spoken": None, "written": {"task": "A1T2"}})
    assert [mode.name for mode in left] == ["written"]
    for modes in (None, {}, {"spoken": None}, "spoken"):
        with pytest.raises(ValueError, match=f"--answer_modes {modes}: must map"):
            AnswerMode.all_of(modes)


def test_some_is_the_same_part_each_time():
    assert some(ROWS, None) == ROWS == some(ROWS, 9)
    assert some(ROWS, 2) == some(ROWS, 2) and len({entry.id for entry in some(ROWS, 2)}) == 2
