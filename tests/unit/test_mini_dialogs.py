"""Test the dialogs of the mini corpus: their answers follow from the history, and held-out cases are kept apart."""

from __future__ import annotations

import itertools
import random
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

EGS = Path(__file__).resolve().parents[2] / "egs" / "mini"
sys.path.append(str(EGS))

import corpus_plan  # noqa: E402
import dialog_plan  # noqa: E402
import facts  # noqa: E402
import followups  # noqa: E402
import make_text  # noqa: E402
import voices  # noqa: E402
import world  # noqa: E402

SPLITS = ("train", "more", "dev", "test_seen", "test_unseen")
CASES = [(template, case) for template in followups.templates() for case in template.cases]
SCALE = 0.2


@pytest.fixture(scope="module")
def plan() -> dict[str, list[corpus_plan.PlannedTurn]]:
    """Return the planned turns of each split at a fifth of the full size."""
    rows = corpus_plan.plan_dialogs(3, SCALE) + corpus_plan.plan_more_dialogs(3, SCALE)
    return {split: [r for r in rows if r.split == f"dialogs_{split}"] for split in SPLITS}


@pytest.fixture(scope="module")
def written_text() -> list[dict]:
    """Return the entries of the text for the backbone."""
    return make_text.rows(1, set())


def by_dialog(rows: list) -> list[list]:
    found = defaultdict(list)
    for row in rows:
        found[row.dialog].append(row)
    return list(found.values())


def number(word: str) -> int:
    return world.NUMBERS.index(word)


def told(history: list[tuple[str, str]], pattern: str) -> tuple[str, ...]:
    """Return the groups of a pattern in the last text of the user that it matches as a whole."""
    return [found for text, _ in history if (found := re.fullmatch(pattern, text))][-1].groups()


def lookup(question: str) -> str:
    return next(q.answer for q in world.questions() if q.text == question)


def answered(history: list[tuple[str, str]], pattern: str) -> tuple[str, ...]:
    """Return the groups of a pattern in the last answer that it matches as a whole."""
    return [found for _, answer in history if (found := re.fullmatch(pattern, answer))][-1].groups()


def yes_or_no(asked: str, right: str, sentence: str) -> str:
    return ("yes " if asked == right else "no ") + sentence.format(right)


NAME = r"(?:my name is|i am|call me) (\w+)"
FRIEND = rf"(?:my friend is )?({'|'.join(facts.NAMES)})(?: is my friend)?"
PAIR = r"(?:remember|my numbers are) (\w+) and (\w+)"
NUMBER = r"(?:remember the number|my number is) (\w+)"
WORD = r"(?:remember the word|the word is) (\w+)"
COLOR = r"(?:i like|my favorite color is) (\w+)"
CITY = r"my favorite city is (\w+)"
THING = r"the \w+ is (\w+)"
SUM = r"\w+ plus \w+ is (\w+)"
DAY = r"(\w+) comes (after|before) (\w+)"

DERIVED = {
    "what is my name": lambda h: f"your name is {told(h, NAME)[0]}",
    "who am i": lambda h: f"you are {told(h, NAME)[0]}",
    "say my name": lambda h: told(h, NAME)[0],
    r"say good (\w+) to me": lambda h, time: f"good {time} {told(h, NAME)[0]}",
    r"is my name (\w+)": lambda h, x: yes_or_no(x, told(h, NAME)[0], "your name is {}"),
    "where am i from": lambda h: f"you are from {told(h, 'i am from (.+)')[0]}",
    "which country did i say": lambda h: f"you said {told(h, 'i am from (.+)')[0]}",
    "what is the capital of my country": lambda h: lookup(f"what is the capital of {told(h, 'i am from (.+)')[0]}"),
    r"am i from (\w+)": lambda h, x: yes_or_no(x, told(h, "i am from (.+)")[0], "you are from {}"),
    "where is my friend from": lambda h: f"your friend is from {told(h, 'my friend is from (.+)')[0]}",
    "who is my friend": lambda h: f"{told(h, FRIEND)[0]} is your friend",
    "say hello to my friend": lambda h: f"hello {told(h, FRIEND)[0]}",
    "what color do i like": lambda h: f"you like {told(h, COLOR)[0]}",
    r"do i like (\w+)": lambda h, x: yes_or_no(x, told(h, COLOR)[0], "you like {}"),
    "what color is it": lambda h: lookup(f"what color is the {told(h, 'i see the (.+)')[0]}"),
    "what do i see": lambda h: f"you see the {told(h, 'i see the (.+)')[0]}",
    "what is my favorite day": lambda h: f"your favorite day is {told(h, 'my favorite day is (.+)')[0]}",
    "what comes after my favorite day": lambda h: lookup(
        f"what day comes after {told(h, 'my favorite day is (.+)')[0]}"
    ),
    "what is my favorite city": lambda h: f"your favorite city is {told(h, CITY)[0]}",
    r"did i say (\w+)": lambda h, x: yes_or_no(x, told(h, CITY)[0], "you said {}"),
    "(?:which word was it|what was the word)": lambda h: f"the word was {told(h, WORD)[0]}",
    "say the word": lambda h: told(h, WORD)[0],
    "(?:which number was it|what is my number)": lambda h: f"the number was {told(h, NUMBER)[0]}",
    "how old am i": lambda h: f"you are {told(h, r'i am (.+) years old')[0]} years old",
    "what was the first number": lambda h: f"the first number was {told(h, PAIR)[0]}",
    "what was the second number": lambda h: f"the second number was {told(h, PAIR)[1]}",
    "which is bigger": lambda h: f"{max(told(h, PAIR), key=number)} is bigger",
    "which is smaller": lambda h: f"{min(told(h, PAIR), key=number)} is smaller",
    "what is the sum": lambda h: world.sum_answer(*map(number, told(h, PAIR))),
    r"plus (\w+) more": lambda h, n: world.sum_answer(number(answered(h[-1:], SUM)[0]), number(n)),
    "how much was it": lambda h: f"it was {answered(h, SUM)[0]}",
    "and the day after": lambda h: lookup(f"what day comes after {answered(h[-1:], DAY)[0]}"),
    "and before that": lambda h: lookup(f"what day comes before {answered(h[-1:], DAY)[0]}"),
    "which day did you say": lambda h: f"i said {answered(h, DAY)[0]}",
    r"when does (\w+) come": lambda h, who: f"{who} comes {told(h, f'{who} comes (.+)')[0]}",
    r"who comes (\w+)": lambda h, day: f"{told(h, f'(.+) comes {day}')[0]} comes {day}",
    r"where is (\w+)": lambda h, who: f"{who} is in {told(h, f'{who} is in (.+)')[0]}",
    r"who is in (\w+)": lambda h, city: f"{told(h, f'(.+) is in {city}')[0]} is in {city}",
    "which city did you say": lambda h: f"i said {answered(h, '(.+) is the capital of .+')[0]}",
    "which country did i ask about": lambda h: f"you asked about {told(h, '.+ capital of (.+)')[0]}",
    "which color did you say": lambda h: f"i said {answered(h, THING)[0]}",
    "which word did you say": lambda h: f"i said {answered(h, 'the opposite of .+ is (.+)')[0]}",
    "(?:say that again|what did you say)": lambda h: h[-1][1],
    "are you sure": lambda h: f"yes {h[-1][1]}",
    "what did i ask": lambda h: f"you asked {h[-1][0]}",
    "what did i ask first": lambda h: f"you asked {h[0][0]}",
    "what did i say": lambda h: f"you said {h[-1][0]}",
}  # fmt: skip
"""For most follow-ups, the rule by which the answer follows from the questions and answers before."""


def derive(history: list[tuple[str, str]], ask: str) -> str | None:
    """Return the answer to a follow-up by the rule for it; None if there is no rule."""
    for pattern, rule in DERIVED.items():
        if found := re.fullmatch(pattern, ask):
            return rule(history, *found.groups())
    return None


def test_there_are_many_templates():
    assert len(followups.templates()) >= 40
    assert len({template.name for template in followups.templates()}) == len(followups.templates())


def test_answers_follow_from_the_facts():
    derived = set()
    for template, case in CASES:
        history = [(random.Random(case.key).choice(fact.texts), fact.answer) for fact in case.facts]
        for ask in case.asks:
            found = derive(history, ask)
            assert found in (None, case.answer), (history, ask)
            derived |= {template.name} if found else set()
    assert len(derived) >= 40


def test_answers_follow_from_whole_dialogs(plan):
    """No unrelated turn before or between changes an answer, which is found in the history as it is spoken."""
    checked = 0
    for rows in (dialog for split in SPLITS for dialog in by_dialog(plan[split])):
        for i, row in enumerate(rows):
            if row.template and (found := derive([(r.text, r.answer) for r in rows[:i]], row.text)) is not None:
                assert found == row.answer, [r.text for r in rows]
                checked += 1
    assert checked > 800


def test_a_follow_up_has_one_answer():
    """No two cases have the same facts and the same question, in any wording, but different answers."""
    answers: dict[tuple, str] = {}
    for _, case in CASES:
        for ask in case.asks:
            for text in case.facts[-1].texts:
                key = (*(fact.key for fact in case.facts[:-1]), text, ask)
                assert answers.setdefault(key, case.answer) == case.answer, key
    assert len({case.key for _, case in CASES}) == len(CASES)


def test_the_answer_depends_on_the_facts():
    """Every follow-up question has several answers, each after other facts."""
    answers = defaultdict(set)
    for _, case in CASES:
        answers[case.asks[0]].add(case.answer)
    assert min(map(len, answers.values())) >= 7


def test_an_eighth_of_each_template_is_held_out():
    held_out = followups.held_out()
    for template in followups.templates():
        share = sum(case.key in held_out for case in template.cases) / len(template.cases)
        assert 0 < share <= 0.2, template.name
    remaining = [case for _, case in CASES if case.key not in held_out]
    for parts in (lambda case: {fact.key for fact in case.facts}, lambda case: {case.asks[0]}):
        trained = set().union(*map(parts, remaining))
        assert all(parts(case) <= trained for _, case in CASES)


def test_held_out_cases_are_in_no_training_dialog(plan):
    """Facts and questions of the tests occur in training, but no test question after its fact, in any wording."""
    wordings = defaultdict(set)
    for fact in (fact for _, case in CASES for fact in case.facts):
        for text in fact.texts:
            wordings[text] |= set(fact.texts)
    alone = [case for _, case in CASES if len(case.facts) == 1]
    questions = {ask for case in alone for ask in case.asks}
    trained, known = set(), set()
    for dialog in by_dialog([*plan["train"], *plan["more"], *plan["dev"]]):
        stated = [r.text for r in dialog if r.kind == "first"]
        known |= set(stated)
        if len(stated) == 1:
            trained |= {(stated[0], r.text) for r in dialog if r.template}
    asked = {r.text for r in plan["train"] if r.template}
    unknown = 0
    for split in ("test_seen", "test_unseen"):
        for dialog in by_dialog(plan[split]):
            stated = [r.text for r in dialog if r.kind == "first"]
            for text in stated:
                assert wordings[text] & known, text
                if len(stated) == 1:
                    later = {r.text for r in dialog if r.template} & questions
                    assert not {(text, ask) for ask in later} & trained
            unknown += sum(r.text not in asked for r in dialog if r.template)
    assert unknown <= 3  # at full size it is none


def test_held_out_cases_do_not_depend_on_the_seed():
    one = {turn.case for d in dialog_plan.draw_dialogs(random.Random(1), 300) for turn in d if turn.case}
    two = {turn.case for d in dialog_plan.draw_dialogs(random.Random(2), 300, held_out=True) for turn in d if turn.case}
    assert not one & followups.held_out() and two <= followups.held_out() and len(two) > 100


def test_guessing_without_the_history_is_hardly_ever_right(plan):
    """Always giving the most frequent answer to the same question is right in fewer than 15 % of the follow-ups."""
    rows = [r for split in ("test_seen", "test_unseen") for r in plan[split] if r.template]
    assert all(r.guess for r in rows if r.text in {t.text for t in plan["train"] if t.template})
    right = sum(r.guess in (r.accepted or (r.answer,)) for r in rows)
    assert right / len(rows) < 0.15
    many = [turn for d in dialog_plan.draw_dialogs(random.Random(5), 10000) for turn in d if turn.template]
    best = defaultdict(Counter)
    for turn in many:
        best[turn.template][turn.answer] += 1
    assert sum(max(found.values()) for found in best.values()) / len(many) < 0.15
    for name, found in best.items():
        assert max(found.values()) / sum(found.values()) < 0.25, name


def test_dialogs_are_short_and_end_with_a_follow_up(plan):
    for dialog in (d for split in SPLITS for d in by_dialog(plan[split])):
        assert 2 <= len(dialog) <= 5 and [r.turn for r in dialog] == list(range(len(dialog)))
        assert dialog[-1].kind.startswith("follow-") and "first" in [r.kind for r in dialog]
        assert all((r.kind.startswith("follow-")) == bool(r.template) for r in dialog)
        assert len({(r.voice, r.speed, r.pitch) for r in dialog}) == 1
    lengths = Counter(len(d) for d in by_dialog(plan["train"]))
    assert min(lengths[n] for n in range(2, 6)) > 20


def test_voices_of_the_dialogs(plan):
    spoken = {split: {r.voice for r in plan[split]} for split in SPLITS}
    assert all(spoken[split] <= set(voices.TRAIN_VOICES) for split in ("train", "more", "test_seen"))
    assert spoken["test_unseen"] <= set(voices.TEST_VOICES)
    manner = {split: {(r.speed, r.pitch) for r in plan[split]} for split in SPLITS}
    assert not (manner["train"] | manner["more"]) & (manner["dev"] | manner["test_seen"] | manner["test_unseen"])


def test_dialogs_about_interrupted_answers(plan):
    """Each ends with a held-out question about the answer before, which is long enough to be cut at a quarter.

    The questions and their facts are those of training, the voices are not.
    """
    rows = corpus_plan.plan_crop_dialogs(3)
    dialogs = by_dialog(rows)
    assert len(dialogs) == 100 and {r.split for r in rows} == {"dialogs_test_crop"}
    assert len({(*[r.text for r in d], d[0].voice, d[0].speed, d[0].pitch) for d in dialogs}) == 100
    pairs = Counter((d[-2].text, d[-1].template) for d in dialogs)
    assert len(pairs) > 60 and max(pairs.values()) == 2
    keys = {case.key for t, case in CASES if t.name in dialog_plan.ABOUT_ANSWER and case.key in followups.held_out()}
    names = {name: next(c.asks[0] for t, c in CASES if t.name == name) for name in dialog_plan.ABOUT_ANSWER}
    trained = {r.text for r in corpus_plan.plan_dialogs(3) if r.split == "dialogs_train"}
    for *history, last in dialogs:
        assert 1 <= len(history) <= 2 and [bool(r.template) for r in history] == [False] * len(history)
        assert len(history[-1].answer.split()) >= 4
        assert f"{history[-1].text} / {names[last.template]}" in keys and history[-1].text in trained
        assert derive([(r.text, r.answer) for r in history], last.text) == last.answer
    assert {d[-1].text for d in dialogs} == {"say that again", "what did you say", "are you sure"}
    assert {r.voice for r in rows} <= set(voices.TEST_VOICES)
    tiny = by_dialog(corpus_plan.plan_crop_dialogs(3, 0.002))
    assert len(tiny) == 6 and {d[-1].template for d in tiny} <= set(dialog_plan.ABOUT_ANSWER)


def test_some_training_dialogs_are_about_the_answer_before(plan):
    """They follow the others of `dialogs_more` under names of their own, and ask only what is not held out."""
    dialogs = by_dialog(plan["more"])
    others = corpus_plan.scaled(corpus_plan.MORE_DIALOGS, SCALE)
    about = dialogs[others:]
    assert len(about) == corpus_plan.scaled(corpus_plan.MORE_ABOUT_ANSWERS, SCALE)
    assert [d[0].dialog for d in dialogs] == [f"dialogs_more-{i:05d}" for i in range(len(dialogs))]
    names = {name: next(c.asks[0] for t, c in CASES if t.name == name) for name in dialog_plan.ABOUT_ANSWER}
    for *history, last in about:
        assert last.template in names and not any(turn.template for turn in history)
        assert f"{history[-1].text} / {names[last.template]}" not in followups.held_out()
    assert Counter(d[-1].template for d in about).keys() == names.keys()
    assert 0.2 < sum(bool(turn.parts) for d in about for turn in d) / sum(map(len, about)) < 0.4


def test_every_word_of_an_answer_is_spoken_in_training():
    trained = {w for r in corpus_plan.plan_corpus(1, 0.2) if r.split == "train-voice" for w in r.text.split()}
    assert {w for t in followups.texts() for w in t.split()} <= trained


def test_no_held_out_sum_is_said_in_a_dialog():
    assert not any(world.mentions_sum(text) for text in followups.texts())


def test_written_dialogs(written_text, tmp_path):
    """The text for the backbone has whole dialogs without held-out cases, in the order of their turns."""
    rows = written_text
    spoken = [row for row in rows if "dialog" in row]
    assert len({row["dialog"] for row in spoken}) == make_text.DIALOGS + make_text.REPEATING
    for before, row in itertools.pairwise(rows):
        if row.get("turn"):
            assert (before["dialog"], before["turn"]) == (row["dialog"], row["turn"] - 1)
    table = make_text.pa.Table.from_pylist(rows, make_text.SCHEMA)
    pq.write_table(table, tmp_path / "text.parquet")
    read = pq.read_table(tmp_path / "text.parquet").to_pylist()
    assert sum(row["dialog"] is None for row in read) == len(rows) - len(spoken)
    assert len({row["id"] for row in read}) == len(read)


def test_written_training_dialogs_have_no_held_out_case():
    drawn = corpus_plan.draw_training_dialogs(3, 0.2) + corpus_plan.draw_written_dialogs(3, 0.2)
    cases = {turn.case for dialog in drawn for turn in dialog if turn.case}
    assert len(cases) > 3000 and not cases & followups.held_out()


def test_dialogs_about_a_text_to_repeat(written_text):
    """The second answer follows from the first, which no dialog to be tested has."""
    dialogs: dict[str, list[tuple[str, str]]] = {}
    for row in written_text:
        if row["kind"] == "repeat" and "dialog" in row:
            dialogs.setdefault(row["dialog"], []).append((row["t1"], row["t2"]))
    counted = Counter()
    for (first, text), (question, answer) in dialogs.values():
        assert first == f"repeat {text}"
        expected = {"are you sure": f"yes {text}", "what did i ask": f"you asked {first}"}.get(question, text)
        if question in ("the next one", "and the one before"):
            said = text.split()
            counted[len(said)] += 1
            known = world.NUMBERS if said[0] in world.NUMBERS else world.DAYS * 3
            at = known.index(said[0], 7 if known is not world.NUMBERS else 0)
            assert known[at : at + len(said)] == said
            expected = known[at - 1] if question.endswith("before") else known[at + len(said)]
        assert answer == expected
    assert set(counted) == set(make_text.COUNTED)
    assert not {len(facts.counts(number).answer.split()) for number in range(18)} & set(counted)
    assert len(dialogs) == make_text.REPEATING and len({turns[0][1] for turns in dialogs.values()}) > 5000
