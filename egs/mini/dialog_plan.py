"""Draws the dialogs of the mini corpus: facts, other turns between, and follow-up questions that need the facts."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

import followups
import world
from followup_cases import FollowupCase, Template

LONGEST = 5
"""Maximum number of turns of a dialog."""
OPENING_SHARE, SECOND_SHARE = 0.25, 0.4
"""Shares of dialogs that open with an unrelated turn, and that have a second follow-up if a template allows one."""
BETWEEN = (0.45, 0.35, 0.2)
"""Shares of dialogs with 0, 1 and 2 unrelated turns between fact and follow-up."""
YES_WEIGHT = 2.0
"""How much more often `yes ..` is drawn than any other answer to a question of yes or no."""
PARTING = ("goodbye", "good night")
ABOUT_ANSWER = ("say that again", "are you sure")
"""Names of the templates that ask about the answer before, so that their own answer depends on how much was heard."""


@dataclass(frozen=True)
class DialogTurn:
    """One turn of a dialog: a question or statement and its only correct answer."""

    text: str
    answer: str
    kind: str  # first, distractor or follow-<group>
    template: str = ""  # follow-ups only
    accepted: tuple[str, ...] = ()  # all wordings of the answer, if there is more than one
    case: str = ""  # follow-ups only: key of the case
    facts: tuple[str, ...] = ()  # follow-ups only: keys of the facts


def draw_dialogs(
    rng: random.Random, count: int, *, held_out: bool = False, told: Collection[str] | None = None
) -> list[list[DialogTurn]]:
    """Return random dialogs of 2 to 5 turns.

    Args:
        held_out: whether all follow-ups are held-out cases; otherwise none is.
        told: keys of the facts to choose from; None = all.
    """
    choice = {t.name: _by_ask(t, held_out, told) for t in followups.templates()}
    possible = [t for t in followups.templates() if choice[t.name]]
    weights = [t.weight for t in possible]
    dialogs = []
    for template in rng.choices(possible, weights, k=count):
        case = _draw_case(choice[template.name], rng)
        dialogs.append(_dialog(template, case, _second(template, case, held_out, rng), rng))
    return dialogs


def draw_about_answers(
    rng: random.Random, count: int, *, held_out: bool = False, told: Collection[str] | None = None
) -> list[list[DialogTurn]]:
    """Return random dialogs whose only follow-up, the last turn, is about the answer before.

    Each case is used as often as the others, or once more.

    Args:
        held_out: whether all follow-ups are held-out cases; otherwise none is.
        told: keys of the facts to choose from; None = all. If no case is about these (tiny corpora), all are used.
    """
    asked = [(t, case) for t in followups.templates() if t.name in ABOUT_ANSWER for case in t.cases]
    known = [(t, case) for t, case in asked if _fits(case, held_out, told)]
    known = known or [(t, case) for t, case in asked if _fits(case, held_out)]
    rng.shuffle(known)
    return [_dialog(*known[i % len(known)], None, rng) for i in range(count)]


def _fits(case: FollowupCase, held_out: bool, told: Collection[str] | None = None) -> bool:
    """Return whether a case is held out, or not, as wanted, and all of its facts are among those told (None = any)."""
    known = told is None or all(fact.key in told for fact in case.facts)
    return known and (case.key in followups.held_out()) == held_out


Choice = dict[str, dict[str, list[FollowupCase]]]
"""Cases by question and answer, so that all answers to a question can be drawn equally often."""


def _by_ask(template: Template, held_out: bool, told: Collection[str] | None) -> Choice:
    found: Choice = defaultdict(lambda: defaultdict(list))
    for case in template.cases:
        if _fits(case, held_out, told):
            found[case.asks[0]][case.answer].append(case)
    return found


def _draw_case(choice: Choice, rng: random.Random) -> FollowupCase:
    answers = choice[rng.choice(list(choice))]
    weights = [YES_WEIGHT if answer.startswith("yes ") else 1.0 for answer in answers]
    return rng.choice(answers[rng.choices(list(answers), weights)[0]])


@lru_cache(maxsize=1)
def _same_facts() -> dict[tuple, list[tuple[Template, FollowupCase]]]:
    """Return the cases that can come second in a dialog, with their templates, by their facts."""
    found = defaultdict(list)
    for template in followups.templates():
        if not template.last and not template.opening:
            for case in template.cases:
                found[case.facts].append((template, case))
    return found


def _second(
    first: Template, case: FollowupCase, held_out: bool, rng: random.Random
) -> tuple[Template, FollowupCase] | None:
    """Return a second case about the facts of the first one; None where there is none or the dialog ends before."""
    if first.last or first.opening or rng.random() > SECOND_SHARE:
        return None
    fitting = [
        (template, other)
        for template, other in _same_facts()[case.facts]
        if other.asks[0] != case.asks[0] and _fits(other, held_out) and _may_follow(template, first)
    ]
    return rng.choice(fitting) if fitting else None


def _may_follow(template: Template, first: Template) -> bool:
    """Return whether a template may come directly after another; only its like may follow `and ..`."""
    if first.group == "and":  # it was about another value
        return template.name == first.name
    return not template.adjacent


def _dialog(
    template: Template, case: FollowupCase, second: tuple[Template, FollowupCase] | None, rng: random.Random
) -> list[DialogTurn]:
    asked = [(template, case)] + ([second] if second else [])
    follow_ups = [_follow_up(*each, rng) for each in asked]
    told = [DialogTurn(rng.choice(fact.texts), fact.answer, "first") for fact in case.facts]
    avoid = frozenset().union(*(each.avoid for each, _ in asked))
    room = LONGEST - len(told) - len(follow_ups)
    between = 0 if template.adjacent else min(room, rng.choices(range(3), BETWEEN)[0])
    opens = not template.opening and between < room and rng.random() < OPENING_SHARE
    others = _distractors(between + opens, avoid, {turn.text for turn in (*told, *follow_ups)}, rng)
    return [*others[:opens], *told, *others[opens:], *follow_ups]


def _follow_up(template: Template, case: FollowupCase, rng: random.Random) -> DialogTurn:
    accepted = (case.answer, *case.accepted) if case.accepted else ()
    facts = tuple(fact.key for fact in case.facts)
    kind = f"follow-{template.group}"
    return DialogTurn(rng.choice(case.asks), case.answer, kind, template.name, accepted, case.key, facts)


def _distractors(count: int, avoid: frozenset[str], said: set[str], rng: random.Random) -> list[DialogTurn]:
    """Return turns that do not change the answer to a follow-up: greetings, a third of them, and known questions."""
    found: list[DialogTurn] = []
    for _ in range(count):
        kinds = sorted(set(_questions()) - avoid - {"greeting"})
        kind = "greeting" if rng.random() < 1 / 3 else rng.choice(kinds)
        q = rng.choice([q for q in _questions()[kind] if q.text not in said])
        said = said | {q.text}
        found.append(DialogTurn(q.text, q.answer, "distractor"))
    return found


@lru_cache(maxsize=1)
def _questions() -> dict[str, list[world.WorldQuestion]]:
    found = defaultdict(list)
    for q in world.known_questions():
        if not q.text.startswith(PARTING):
            found[q.kind].append(q)
    return dict(found)


def written(name: str, turns: Iterable[DialogTurn]) -> list[dict[str, str | int]]:
    """Return the manifest entries of a dialog without recordings, one for each turn."""
    return [
        {"id": f"{name}-{i}", "t1": turn.text, "t2": turn.answer, "kind": turn.kind, "dialog": name, "turn": i}
        for i, turn in enumerate(turns)
    ]


def told_facts(dialogs: Iterable[list[DialogTurn]]) -> set[str]:
    """Return the keys of the facts that follow-ups in these dialogs are about."""
    return {fact for dialog in dialogs for turn in dialog for fact in turn.facts}


def guesses(dialogs: Iterable[list[DialogTurn]]) -> dict[str, str]:
    """Return the most frequent answer to each follow-up question, by the text of the question."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for turn in (turn for dialog in dialogs for turn in dialog if turn.template):
        answers[turn.text][turn.answer] += 1
    return {text: max(sorted(found), key=found.__getitem__) for text, found in answers.items()}
