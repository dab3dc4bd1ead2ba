"""Tests of the evaluation of conversations, with a stand-in for a system that has a known memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from threading import Barrier

import pytest
import torch
from torch import Tensor

from omnikit.api import Reply
from omnikit.audio.reader import Unusable
from omnikit.data.manifest_reader import ManifestEntry
from omnikit.evaluate.conversation import (
    TOO_SHORT,
    AboutAnswer,
    Interview,
    InterviewAnswers,
    InterviewPlan,
    plan_of,
    recording,
)
from omnikit.evaluate.conversation_scores import CropScores, Score, conversation_table, score, write_dialogs
from omnikit.evaluate.dialogs import AFTER_GAP, DUPLICATE, NO_DIALOG, Dialog, group_dialogs
from omnikit.evaluate.text_normalisation import plain
from omnikit.generate import BadQuestion
from omnikit.tasks import TASKS

CAPITALS = {"france": "paris", "italy": "rome", "spain": "madrid"}
RATE = 100


@dataclass
class Turn:
    """A remembered turn of the stand-in."""

    answer: str


class Sound:
    """A stand-in for a recording; its waveform tells the stand-in system what is asked."""

    def __init__(self, text: str, usable: bool = True):
        self.text, self.usable = text, usable

    def load(self, sample_rate: int) -> Tensor:
        if not self.usable:
            raise Unusable("unreadable", f"{self.text}: unreadable")
        return torch.tensor([ord(letter) / 256 for letter in self.text])


class Parrot:
    """A system that knows capitals, remembers the last answer, and says it again; each word takes a second."""

    def __init__(self, name: str = ""):
        self.turns: list[Turn] = []

    def ask(self, audio: Tensor, *, speak: bool) -> Reply:
        return self.say("".join(chr(round(256 * value)) for value in audio.tolist()), speak=speak)

    def say(self, text: str, *, speak: bool) -> Reply:
        answer = self.answer(text)
        self.turns.append(Turn(answer))
        return Reply(answer, torch.ones(RATE * len(answer.split()) if speak else 0), RATE)

    def answer(self, text: str) -> str:
        if text == "long":
            raise BadQuestion("too long")
        last = text.split()[-1]
        if text.startswith("and in") and not self.turns:
            return "paris"
        if text == "say that again":
            return self.turns[-1].answer if self.turns else "what"
        return f"the capital of {last} is {CAPITALS[last]}"

    def crop(self, seconds: float) -> None:
        self.turns[-1].answer = " ".join(self.turns[-1].answer.split()[: int(seconds)])


def entry(dialog: str, turn: int | None, question: str, *right: str, kind: str = "first", **other) -> ManifestEntry:
    name = f"{dialog}-{turn}"
    a1 = other.pop("a1", Sound(question))
    return ManifestEntry(name, question, accepted=right, kind=kind, dialog=dialog, turn=turn, a1=a1, **other)


def talk(dialog: str, first: str, second: str) -> list[ManifestEntry]:
    capital = {country: f"the capital of {country} is {city}" for country, city in CAPITALS.items()}
    return [
        entry(dialog, 0, f"the capital of {first}", capital[first]),
        entry(dialog, 1, f"and in {second}", capital[second], kind="follow-and"),
        entry(dialog, 2, "say that again", capital[second], kind="follow-again"),
    ]


ENTRIES = [*talk("a", "france", "italy"), *talk("b", "spain", "italy"), *talk("c", "italy", "spain")]
AGAIN = InterviewPlan(crop=[0.5], about_answer=[AboutAnswer("say that .*", "{answer}")])


def asked(
    entries: list[ManifestEntry], plan: InterviewPlan = AGAIN, together: int = 2, **options
) -> tuple[list[Dialog], InterviewAnswers]:
    dialogs, _ = group_dialogs(entries)
    return dialogs, Interview(Parrot, RATE, plan, **options).run(dialogs, together=together)


def test_dialogs_are_grouped_in_order_and_end_at_a_gap():
    entries = [entry("b", 3, "q"), entry("a", 2, "q"), entry("b", 1, "q"), entry("a", 1, "q"), entry("a", 4, "q")]
    entries += [entry("a", 1, "again"), entry("late", 2, "q"), entry("", 1, "q"), entry("a", None, "q")]
    dialogs, skipped = group_dialogs(entries)
    assert [(each.name, [turn.turn for turn in each.turns]) for each in dialogs] == [("b", [1]), ("a", [1, 2])]
    assert dialogs[1].turns[0].t1 == "q"
    assert skipped.reasons == {NO_DIALOG: 2, DUPLICATE: 1, AFTER_GAP: 3}
    assert group_dialogs([])[0] == []
    odd = [entry("odd", 0, "q"), entry("odd", 1, "q")]  # begins before the others, which stay
    dialogs, skipped = group_dialogs([*odd, *entries])
    assert [(each.name, len(each.turns)) for each in dialogs] == [("odd", 2), ("b", 1), ("a", 2)]
    assert skipped.reasons[AFTER_GAP] == 3


def test_follow_ups_are_scored_with_history_alone_and_after_an_interruption():
    dialogs, answers = asked(ENTRIES)
    scores = score(dialogs, answers, AGAIN, plain, dialogs)
    found = scores.kinds["follow-and"]
    assert (found.history, found.alone, found.crops) == (Score(3, 3), Score(0, 3), {})
    # "and in italy" is asked twice with one answer; over the kind, that answer is right in two cases of three
    assert (found.frequent_of_text, found.frequent_of_kind) == (Score(3, 3), Score(2, 3))
    found = scores.kinds["follow-again"]
    assert (found.history, found.alone, found.frequent_of_text) == (Score(3, 3), Score(0, 3), Score(2, 3))
    assert found.crops == {0.5: CropScores(Score(3, 3), Score(0, 3))}
    assert answers.cropped["a-2", 0.5].kept == "the capital of"  # half of 6 words, one a second
    assert answers.cropped["a-2", 0.5].whole == "the capital of italy is rome"
    assert scores.follow_ups.history == Score(6, 6) and scores.follow_ups.alone == Score(0, 6)
    assert scores.kinds["first"].history == Score(3, 3) and scores.kinds["first"].alone == Score()
    assert (scores.dialogs, scores.typed, scores.truncated, scores.skipped) == (3, 0, 0, {})
    table = conversation_table({"test": {"speech": scores}})
    line = "| test, speech: all follow-ups | 6 | 100.0 | 0.0 | 83.3 | 66.7 | 100.0 / 0.0 (3) |"
    assert line in table and "| test, speech: first | 3 | 100.0 | - | - | - | - |" in table


def test_the_most_frequent_answers_are_those_of_training():
    dialogs, answers = asked(ENTRIES)
    training = group_dialogs([*talk("t", "italy", "spain"), *talk("u", "italy", "spain"), *talk("v", "spain", "italy")])
    found = score(dialogs, answers, AGAIN, plain, training[0]).kinds
    again, known = found["follow-again"], found["follow-and"]
    assert again.frequent_of_text == again.frequent_of_kind == Score(1, 3)  # in the split itself, two of three
    assert (known.frequent_of_text, known.frequent_of_kind) == (Score(3, 3), Score(1, 3))
    unknown = score(dialogs, answers, AGAIN, plain, group_dialogs(talk("t", "italy", "france"))[0])
    assert unknown.kinds["follow-and"].frequent_of_text == Score(0, 3)  # training asks of no such country
    without = score(dialogs, answers, AGAIN, plain)
    assert without.follow_ups.frequent_of_text == without.follow_ups.frequent_of_kind == Score()
    table = conversation_table({"test": {"speech": without}})
    assert "| test, speech: all follow-ups | 6 | 100.0 | 0.0 | - | - |" in table
    assert "Most frequent in training" in table


def test_answers_are_interrupted_after_several_shares():
    hparams = {"follow_ups": "^follow", "typed": 0.0, "about_answer": [{"question": "say.*", "answer": "{answer}"}]}
    plan = plan_of({**hparams, "crop": [1.0, 0.25, 0.5]}, TASKS["A1A2"])
    dialogs, answers = asked(ENTRIES, plan)
    assert [answers.cropped["a-2", share].kept for share in (0.25, 0.5)] == ["the", "the capital of"]
    scores = score(dialogs, answers, plan, plain)
    assert scores.follow_ups.crops == dict.fromkeys((0.25, 0.5), CropScores(Score(3, 3), Score(0, 3)))
    assert scores.skipped == {TOO_SHORT: 3}  # the whole answer was heard
    found = scores.as_dict()["follow_ups"]
    assert found["cropped"]["asked"] == 6 and found["crops"]["0.25"]["cropped"]["asked"] == 3
    header, _, row = conversation_table({"test": {"speech": scores}}).splitlines()[:3]
    assert "Heard 25%" in header and row.endswith("| 100.0 / 0.0 (3) | 100.0 / 0.0 (3) | - |")
    assert plan_of({**hparams, "crop": None}, TASKS["A1A2"]).crop == []


def test_every_turn_after_the_first_is_a_follow_up_where_kinds_say_nothing():
    entries = [replace(each, kind="") for each in ENTRIES]
    plan = InterviewPlan(follow_ups=None)
    dialogs, answers = asked(entries, plan)
    scores = score(dialogs, answers, plan, plain)
    assert scores.follow_ups.history == Score(6, 6) and scores.follow_ups.alone == Score(0, 6)
    assert scores.kinds[""].history == Score(9, 9)
    assert not score(dialogs, answers, AGAIN, plain).follow_ups.history.asked


def test_a_wrong_memory_is_seen():
    """A system that repeats the whole answer after an interruption is right by the whole answer only."""

    class Deaf(Parrot):
        def crop(self, seconds: float) -> None:
            self.whole, self.turns[-1] = self.turns[-1], Turn("the capital")

        def answer(self, text: str) -> str:
            return self.whole.answer if hasattr(self, "whole") else super().answer(text)

    dialogs, _ = group_dialogs(ENTRIES)
    found = score(dialogs, Interview(Deaf, RATE, AGAIN).run(dialogs, together=3), AGAIN, plain).follow_ups
    assert found.interrupted == CropScores(Score(0, 3), Score(3, 3))


def test_answers_too_short_to_cut_are_counted():
    dialogs, answers = asked(ENTRIES, InterviewPlan(crop=[1.0], about_answer=AGAIN.about_answer))
    assert answers.skipped.reasons == {TOO_SHORT: 3} and not answers.cropped
    _, answers = asked(ENTRIES, InterviewPlan(crop=[0.5], about_answer=AGAIN.about_answer, task=TASKS["A1T2"]))
    assert not answers.cropped and not answers.skipped  # written answers are not interrupted
    assert score(dialogs, answers, AGAIN, plain).follow_ups.history == Score(6, 6)


def test_a_share_of_the_questions_is_typed_always_the_same():
    entries = [entry(f"{i}", 0, "capital of italy") for i in range(200)]
    typed = [InterviewPlan(typed=0.3).is_typed(each) for each in entries]
    assert 40 < sum(typed) < 80 and typed == [InterviewPlan(typed=0.3).is_typed(each) for each in entries]
    assert not any(map(InterviewPlan().is_typed, entries)) and all(map(InterviewPlan(typed=1.0).is_typed, entries))
    assert InterviewPlan().is_typed(entry("a", 0, "capital of italy", a1=None))
    dialogs, answers = asked(ENTRIES, InterviewPlan(typed=1.0))
    scores = score(dialogs, answers, InterviewPlan(typed=1.0), plain)
    assert scores.typed == 9 and scores.follow_ups.history == Score(6, 6)


@pytest.mark.parametrize("task", ["T1A2", "T1T2", "A1T2", "A1A2"])
def test_a_mode_with_typed_questions_types_all_of_them(task):
    class Hearing(Parrot):
        heard, spoken = 0, set()

        def ask(self, audio: Tensor, *, speak: bool) -> Reply:
            Hearing.heard += 1
            return super().ask(audio, speak=speak)

        def say(self, text: str, *, speak: bool) -> Reply:
            self.spoken.add(speak)
            return super().say(text, speak=speak)

    dialogs, plan = group_dialogs(ENTRIES)[0], InterviewPlan(task=TASKS[task])
    scores = score(dialogs, Interview(Hearing, RATE, plan).run(dialogs, together=1), plan, plain)
    typed = task.startswith("T1")
    assert (Hearing.heard == 0, Hearing.spoken) == (typed, {task.endswith("A2")})
    assert scores.typed == (9 if typed else 0) and scores.follow_ups.history == Score(6, 6)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [({"a1": Sound("and in spain", usable=False)}, "unreadable"), ({"a1": Sound("long")}, "refused")],
)
def test_a_dialog_ends_before_a_question_that_cannot_be_asked(bad, reason):
    broken = [*talk("a", "france", "italy"), *talk("b", "france", "spain")]
    broken[4] = entry("b", 1, "and in spain", "madrid", kind="follow-and", **bad)
    dialogs, answers = asked(broken)
    scores = score(dialogs, answers, AGAIN, plain)
    assert scores.skipped == {reason: 1}
    assert scores.kinds["first"].history == Score(2, 2) and scores.follow_ups.history == Score(2, 2)
    assert scores.follow_ups.alone == Score(0, 2) and scores.follow_ups.interrupted.cropped == Score(1, 1)
    nothing = group_dialogs([broken[4]])[0]
    with pytest.raises(ValueError, match=f"no question of a dialog could be asked; skipped: 1 {reason}"):
        score(nothing, Interview(Parrot, RATE, AGAIN).run(nothing, together=1), AGAIN, plain)


def test_dialogs_run_together():
    """The first questions of three dialogs wait for each other, which ends only if they are asked at the same time."""
    barrier = Barrier(3, timeout=10)

    class Patient(Parrot):
        def answer(self, text: str) -> str:
            if not self.turns:
                barrier.wait()
            return super().answer(text)

    dialogs, _ = group_dialogs([each for each in ENTRIES if each.turn == 0])
    assert len(Interview(Patient, RATE, AGAIN).run(dialogs, together=3).history) == 3


def test_an_error_ends_the_evaluation():
    class Broken(Parrot):
        def answer(self, text: str) -> str:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Interview(Broken, RATE, AGAIN).run(group_dialogs(ENTRIES)[0], together=2)


def test_turns_are_written_and_some_dialogs_can_be_heard(tmp_path):
    dialogs, answers = asked(ENTRIES, keep_sound={"a"})
    write_dialogs(tmp_path / "d.jsonl", dialogs, answers, AGAIN, plain)
    lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [each.id for each in ENTRIES]
    assert lines[1]["answer"] == "the capital of italy is rome" and lines[1]["is_right"]
    assert lines[1]["alone"] == "paris" and lines[2]["cropped"][0]["right"] == "the capital of"
    wav = recording(dialogs[0], answers.history, AGAIN, RATE)
    questions = sum(len(each.t1) for each in ENTRIES[:3])
    assert len(wav) == questions + 3 * (6 * RATE + 30 + 70)
    typed = recording(dialogs[0], answers.history, InterviewPlan(typed=1.0), RATE)
    assert len(typed) == 3 * (6 * RATE + 30 + 70)
    assert not answers.history["b-0"].wav.numel()
