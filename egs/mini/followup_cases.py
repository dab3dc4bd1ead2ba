"""Follow-up questions of the mini corpus as data, and functions that list the cases of a template."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from facts import Fact


@dataclass(frozen=True)
class FollowupCase:
    """A follow-up question after facts that are told in this order, with its only correct answer."""

    facts: tuple[Fact, ...]
    asks: tuple[str, ...]  # wordings of the follow-up question
    answer: str
    accepted: tuple[str, ...] = ()  # other wordings of the answer

    @property
    def key(self) -> str:
        return " / ".join([*(fact.key for fact in self.facts), self.asks[0]])


@dataclass(frozen=True)
class Template:
    """A kind of follow-up question with all its cases, and the rules of the dialogs that it stands in."""

    name: str
    group: str  # follow-ups of a group are scored together
    cases: tuple[FollowupCase, ...]
    weight: float = 4.0  # share of the drawn follow-ups, relative to the other templates
    adjacent: bool = False  # it refers to the turn before, so that nothing may stand between
    opening: bool = False  # its fact has to open the dialog
    last: bool = False  # it changes what "that" means, so that no further follow-up may come after it
    avoid: frozenset[str] = frozenset()  # kinds of known questions that it could refer to by mistake


Values = list[tuple[str | tuple[str, ...], Fact]]
"""Facts, each with the word or words that it is about."""


def template(name: str, group: str, cases: Iterable[FollowupCase], avoid: str = "", **rules) -> Template:
    return Template(name, group, tuple(cases), avoid=frozenset(avoid.split()), **rules)


def case_of(facts: Fact | tuple[Fact, ...], asks: str | tuple[str, ...], answer: str, *accepted: str) -> FollowupCase:
    facts = facts if isinstance(facts, tuple) else (facts,)
    return FollowupCase(facts, _tuple(asks), answer, accepted)


def each(facts: Values, asks: str | tuple[str, ...], *answers: str) -> list[FollowupCase]:
    """Return a case for each fact, its values in place of `{0}`, `{1}` .. in all wordings of question and answer."""

    def filled(texts: tuple[str, ...], values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(text.format(*values) for text in texts)

    return [case_of(fact, filled(_tuple(asks), _tuple(of)), *filled(answers, _tuple(of))) for of, fact in facts]


def and_other(facts: Values, others: Iterable[str], ask: str, answer: str) -> list[FollowupCase]:
    """Return a case for each fact and each other value, which is the last value of its texts."""
    pairs = [((*_tuple(value), other), fact) for value, fact in facts for other in others if other not in _tuple(value)]
    return each(pairs, ask, answer)


def yes_no(facts: Values, ask: str, answer: str) -> list[FollowupCase]:
    """Return the cases of a question of yes or no, for each pair of a told value and a value that is asked about."""
    return [
        case_of(fact, ask.format(asked), f"{'yes' if told == asked else 'no'} {answer.format(told)}")
        for told, fact in facts
        for asked, _ in facts
    ]


def _tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else (value,)


def told_of(make: Callable[..., Fact], *values: Iterable[str]) -> Values:
    """Return the fact of each value, or of each combination of values, with the value."""
    combined = list(itertools.product(*values))
    return [(combination if len(values) > 1 else combination[0], make(*combination)) for combination in combined]
