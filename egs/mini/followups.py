"""The follow-up questions of the mini corpus: their facts, templates and only correct answers.

A *fact* is what is said first: a statement of the user or a known question, with its answer. A *case* is a follow-up
question about one or two facts, with the answer that is correct after them. The same follow-up question has other
answers after other facts, so that no answer can be guessed without the history. All cases are listed, and an eighth of
each template's is held out; which ones never depends on the seed of the corpus.
"""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from functools import lru_cache

import facts
import world
from facts import NAMES, Fact
from followup_cases import FollowupCase, Template, and_other, case_of, each, template, told_of, yes_no
from world import CAPITALS, COLORS, DAYS, NUMBERS, OPPOSITES, THING_COLOR

SLOTS = world.SLOTS | {"name": NAMES}
"""Values of each slot of the sentence templates, and the names of people."""
WEATHER = ("hot", "cold", "good", "bad", "early", "late")
QUALITIES = ("hot", "cold", "big", "small", "old", "new", "good", "bad", "hard", "soft")
"""Adjectives that are said of countries, and of things."""

HELD_OUT = 8
"""Number of cases of a template of which one is held out."""


def _names() -> list[Template]:
    called = told_of(facts.called, NAMES)
    greeted = [((time, name), fact) for name, fact in called for time in SLOTS["time"]]
    return [
        template("my name", "name", each(called, "what is my name", "your name is {}", "you are {}")),
        template("who am i", "name", each(called, "who am i", "you are {}", "your name is {}")),
        template("say my name", "name", each(called, "say my name", "{}", "your name is {}")),
        template("greet me", "name", each(greeted, "say good {0} to me", "good {0} {1}")),
        template("is my name", "name", yes_no(called, "is my name {}", "your name is {}")),
    ]


def _origins() -> list[Template]:
    own, friends = told_of(facts.comes_from, CAPITALS), told_of(facts.friend_from, CAPITALS)
    capitals = [((CAPITALS[country], country), fact) for country, fact in own]
    is_capital = "{} is the capital of {}"
    return [
        template("where am i from", "origin", each(own, "where am i from", "you are from {}")),
        template("which country did i say", "origin", each(own, "which country did i say", "you said {}"), "capital"),
        template("my capital", "origin", each(capitals, "what is the capital of my country", is_capital)),
        template("am i from", "origin", yes_no(own, "am i from {}", "you are from {}")),
        template("friend from", "origin", each(friends, "where is my friend from", "your friend is from {}")),
        template("is my friend from", "origin", yes_no(friends, "is my friend from {}", "your friend is from {}")),
    ]


def _friends() -> list[Template]:
    friends = told_of(facts.friend, NAMES)
    return [
        template("who is my friend", "friend", each(friends, "who is my friend", "{} is your friend", "{}")),
        template("greet my friend", "friend", each(friends, "say hello to my friend", "hello {}")),
    ]


def _likes() -> list[Template]:
    likes, sees = told_of(facts.likes, COLORS), told_of(facts.sees, THING_COLOR)
    colored = [((thing, THING_COLOR[thing]), fact) for thing, fact in sees]
    return [
        template("what color do i like", "favorite", each(likes, "what color do i like", "you like {}")),
        template("do i like", "favorite", yes_no(likes, "do i like {}", "you like {}")),
        template("what color is it", "favorite", each(colored, "what color is it", "the {} is {}"), "color"),
        template("what do i see", "favorite", each(sees, "what do i see", "you see the {}")),
    ]


def _favorites() -> list[Template]:
    days, cities = told_of(facts.favorite_day, DAYS), told_of(facts.favorite_city, CAPITALS.values())
    following = [((_later(day, 1), day), fact) for day, fact in days]
    where = [((city, country), fact) for (city, fact), country in zip(cities, CAPITALS, strict=True)]
    return [
        template("favorite day", "favorite",
                 each(days, "what is my favorite day", "your favorite day is {}", "{} is your favorite day")),
        template("favorite city", "favorite",
                 each(cities, "what is my favorite city", "your favorite city is {}", "{} is your favorite city")),
        template("after the favorite day", "favorite",
                 each(following, "what comes after my favorite day", "{} comes after {}")),
        template("country of the city", "favorite", each(where, "which country is it in", "{} is in {}"), "capital"),
        template("did i say", "favorite", yes_no(cities, "did i say {}", "you said {}"), "capital"),
    ]  # fmt: skip


def _later(day: str, days: int) -> str:
    return DAYS[(DAYS.index(day) + days) % 7]


def _remembered() -> list[Template]:
    words = told_of(facts.word, [*COLORS, *THING_COLOR, *world.ADJECTIVES, *NAMES])
    numbers, ages = told_of(facts.number, NUMBERS[1:20]), told_of(facts.age, NUMBERS[2:])
    after = [((NUMBERS[i], number), fact) for i, (number, fact) in enumerate(numbers, 2)]
    before = [((NUMBERS[i], number), fact) for i, (number, fact) in enumerate(numbers)]
    which_word = ("which word was it", "what was the word")
    which_number = ("which number was it", "what is my number")
    return [
        template("which word", "remember", each(words, which_word, "the word was {}", "the word is {}")),
        template("say the word", "remember", each(words, "say the word", "{}")),
        template("which number", "remember",
                 each(numbers, which_number, "the number was {}", "your number is {}"), "sum"),
        template("after the number", "remember",
                 each(after, "what comes after my number", "{} comes after {}"), "sum"),
        template("before the number", "remember",
                 each(before, "what comes before my number", "{} comes before {}"), "sum"),
        template("how old am i", "remember", each(ages, "how old am i", "you are {} years old")),
    ]  # fmt: skip


def _two_numbers() -> list[Template]:
    pairs = [((a, b), facts.two_numbers(a, b)) for a, b in itertools.permutations(NUMBERS, 2)]
    ordered = [(tuple(sorted(pair, key=NUMBERS.index)), fact) for pair, fact in pairs]
    sums = [(_sum(*pair), fact) for pair, fact in pairs if set(pair) <= set(SLOTS["small"]) and not _is_kept(*pair)]
    return [
        template("first number", "numbers",
                 each(pairs, "what was the first number", "the first number was {0}"), "sum"),
        template("second number", "numbers",
                 each(pairs, "what was the second number", "the second number was {1}"), "sum"),
        template("bigger", "numbers", each(ordered, "which is bigger", "{1} is bigger"), "sum"),
        template("smaller", "numbers", each(ordered, "which is smaller", "{0} is smaller"), "sum"),
        template("sum of them", "numbers", each(sums, "what is the sum", "{}"), "sum"),
    ]  # fmt: skip


def _sum(a: str, b: str) -> str:
    return world.sum_answer(NUMBERS.index(a), NUMBERS.index(b))


def _is_kept(a: str, b: str) -> bool:
    """Return whether a sum of two number words is held out."""
    return world.mentions_sum(f"{a} plus {b}")


def _sums() -> list[Template]:
    sums = [(fact.answer.split()[-1], fact) for fact in facts.questions("sum")]
    rules = {"adjacent": True, "last": True}
    small = [(result, fact) for result, fact in sums if result not in NUMBERS[19:]]
    more = {n: [(_sum(r, n), fact) for r, fact in small if not _is_kept(r, n)] for n in ("one", "two")}
    less = [((result, NUMBERS[NUMBERS.index(result) - 1]), fact) for result, fact in sums if result != "zero"]
    return [
        *(template(f"{n} more", "sum", each(values, f"plus {n} more", "{}"), **rules) for n, values in more.items()),
        template("minus one", "sum", each(less, "and minus one", "{} minus one is {}"), **rules),
        template("how much was it", "sum", each(sums, "how much was it", "it was {}"), "sum"),
    ]


def _counting() -> list[Template]:
    counts = [facts.counts(n) for n in range(18)]
    numbers = [(NUMBERS[n + 3], fact) for n, fact in enumerate(counts)]
    days = [(_later(day, 2), _day("after", day)) for day in DAYS]
    before = [(NUMBERS[n - 1], fact) for n, fact in enumerate(counts) if n]
    rules = {"adjacent": True, "last": True}
    return [
        template("next one", "counting", each(numbers + days, "the next one", "{}"), weight=6, **rules),
        template("one before", "counting", each(before, "and the one before", "{}"), **rules),
    ]


def _day(side: str, day: str) -> Fact:
    """Return the question for the day before or after a day of the week, as a fact."""
    return next(fact for fact in facts.questions("day") if fact.answer.endswith(f"{side} {day}"))


def _days() -> list[Template]:
    after, before = [(day, _day("after", day)) for day in DAYS], [(day, _day("before", day)) for day in DAYS]
    answers = [(_later(day, by), fact) for by, values in ((1, after), (-1, before)) for day, fact in values]
    later = [((_later(day, 2), _later(day, 1)), fact) for day, fact in after]
    earlier = [((_later(day, -2), _later(day, -1)), fact) for day, fact in before]
    others = [
        case_of(fact, f"and {other}", f"{_later(other, by)} comes {side} {other}")
        for side, by, values in (("after", 1, after), ("before", -1, before))
        for day, fact in values
        for other in DAYS
        if other != day
    ]
    rules = {"adjacent": True, "last": True}
    return [
        template("the day after", "day", each(later, "and the day after", "{} comes after {}"), **rules),
        template("before that", "day", each(earlier, "and before that", "{} comes before {}"), **rules),
        template("and that day", "and", others, weight=2, **rules),
        template("which day did you say", "day", each(answers, "which day did you say", "i said {}"), "day"),
    ]


def _visits() -> list[Template]:
    visits = told_of(facts.comes, NAMES, DAYS)
    rules = {"adjacent": True, "last": True}
    return [
        template("comes that day too", "and", and_other(visits, DAYS, "and {2}", "{0} comes {2} too"),
                 weight=6, **rules),
        template("corrected name", "correction", and_other(visits, NAMES, "no i said {2}", "{2} comes {1}"), **rules),
        template("when does", "people", each(visits, "when does {0} come", "{0} comes {1}"), "day"),
        template("who comes", "people", each(visits, "who comes {1}", "{0} comes {1}", "{0}")),
    ]  # fmt: skip


def _places() -> list[Template]:
    places, stays = told_of(facts.is_in, NAMES, CAPITALS.values()), told_of(facts.is_in, NAMES, CAPITALS)
    return [
        template("where is", "people", each(places, "where is {0}", "{0} is in {1}")),
        template("who is in", "people", each(places, "who is in {1}", "{0} is in {1}", "{0}")),
        template("where is one of two", "people", _two_places(), weight=8),
        template("corrected place", "correction", and_other(stays, CAPITALS, "no i said {2}", "{0} is in {2}"),
                 weight=6, adjacent=True, last=True),
    ]  # fmt: skip


def _two_places() -> list[FollowupCase]:
    """Return cases with two people in two cities; the follow-up is about either of them."""
    found, cities = [], list(CAPITALS.values())
    for (i, who), (j, city), k in itertools.product(enumerate(NAMES), enumerate(cities), range(1, 5)):
        other, there = NAMES[(i + k) % len(NAMES)], cities[(j + 3 * k - 1) % len(cities)]
        told = (facts.is_in(who, city), facts.is_in(other, there))
        found += [case_of(order, f"where is {who}", f"{who} is in {city}") for order in (told, told[::-1])]
    return found


def _capitals() -> list[Template]:
    asked = [(fact.answer.split()[-1], fact) for fact in facts.questions("capital")]
    cities = [(CAPITALS[country], fact) for country, fact in asked]
    weather = told_of(facts.weather, WEATHER, CAPITALS)
    pairs = [((CAPITALS[o], o), fact) for country, fact in asked for o in CAPITALS if o != country]
    other = each(pairs, "and in {1}", "{0} is the capital of {1}")
    corrected = each(pairs, "no i said {1}", "{0} is the capital of {1}")
    return [
        template("capital of another", "and", other, weight=2, adjacent=True),
        template("weather too", "and", and_other(weather, CAPITALS, "and in {2}", "it is {0} in {2} too"),
                 weight=6, adjacent=True),
        template("corrected country", "correction", corrected, weight=2, adjacent=True, last=True),
        template("which city did you say", "you said", each(cities, "which city did you say", "i said {}"), "capital"),
        template("which country did i ask about", "i asked",
                 each(asked, "which country did i ask about", "you asked about {}"), "capital"),
    ]  # fmt: skip


def _colors() -> list[Template]:
    asked = [(fact.answer.split()[1], fact) for fact in facts.questions("color")]
    colors = [(THING_COLOR[thing], fact) for thing, fact in asked]
    pairs = [((other, THING_COLOR[other]), fact) for thing, fact in asked for other in THING_COLOR if other != thing]
    quality = told_of(facts.quality, THING_COLOR, QUALITIES)
    return [
        template("color of another", "and", each(pairs, "and the {0}", "the {0} is {1}"), weight=2, adjacent=True),
        template("quality too", "and", and_other(quality, THING_COLOR, "and the {2}", "the {2} is {1} too"),
                 weight=6, adjacent=True),
        template("which color did you say", "you said", each(colors, "which color did you say", "i said {}"), "color"),
    ]  # fmt: skip


def _opposites() -> list[Template]:
    opposite = {word: pair[1 - i] for pair in OPPOSITES for i, word in enumerate(pair)}
    asked = [(fact.answer.split()[3], fact) for fact in facts.questions("opposite")]
    answers = [(opposite[word], fact) for word, fact in asked]
    other = [
        case_of(fact, f"and of {o}", f"the opposite of {o} is {opposite[o]}")
        for word, fact in asked
        for o in opposite
        if o not in (word, opposite[word])
    ]
    thoughts = told_of(facts.thinks_of, [*NAMES, *COLORS])
    return [
        template("opposite of another", "and", other, weight=2, adjacent=True),
        template("think of that too", "and",
                 and_other(thoughts, opposite, "and of {1}", "you think of {0} and of {1}"), weight=6, adjacent=True),
        template("which word did you say", "you said",
                 each(answers, "which word did you say", "i said {}"), "opposite"),
    ]  # fmt: skip


def _again() -> list[Template]:
    asked = [((fact.key, fact.answer), fact) for fact in facts.wordings()]
    said = [(fact.key, fact) for fact in facts.statements()]
    again = ("say that again", "what did you say")
    return [
        template("say that again", "you said", each(asked, again, "{1}"), weight=8, adjacent=True),
        template("are you sure", "you said", each(asked, "are you sure", "yes {1}"), weight=6, adjacent=True),
        template("what did i ask", "i asked", each(asked, "what did i ask", "you asked {0}"),
                 weight=8, adjacent=True, last=True),
        template("first question", "i asked", each(asked, "what did i ask first", "you asked {0}"),
                 weight=8, opening=True, last=True),
        template("what did i say", "i asked", each(said, "what did i say", "you said {}"),
                 weight=8, adjacent=True, last=True),
    ]  # fmt: skip


@lru_cache(maxsize=1)
def templates() -> tuple[Template, ...]:
    """Return all templates of follow-up questions."""
    made = (_names, _origins, _friends, _likes, _favorites, _remembered, _two_numbers, _sums, _counting, _days, _visits)
    made += (_places, _capitals, _colors, _opposites, _again)
    return tuple(t for make in made for t in make())


@lru_cache(maxsize=1)
def held_out() -> frozenset[str]:
    """Return the keys of the held-out cases, an eighth of each template's and at least one.

    They are chosen by a hash of the key. A case is not held out if it is the last one with its fact or its question, so
    that training has every fact and every question.
    """
    left = Counter(part for t in templates() for case in t.cases for part in _parts(case))
    found = set()
    for t in templates():
        wanted = -(-len(t.cases) // HELD_OUT)
        for case in sorted(t.cases, key=lambda case: (zlib.crc32(case.key.encode()), case.key)):
            if wanted and all(left[part] > 1 for part in _parts(case)):
                wanted -= 1
                found.add(case.key)
                left.subtract(_parts(case))
    return frozenset(found)


def _parts(case: FollowupCase) -> list[str]:
    return [*(fact.key for fact in case.facts), f"? {case.asks[0]}"]


@lru_cache(maxsize=1)
def texts() -> frozenset[str]:
    """Return all texts of facts and follow-ups, questions as well as answers."""
    found = {text for t in templates() for case in t.cases for text in (*case.asks, case.answer, *case.accepted)}
    told = {fact for t in templates() for case in t.cases for fact in case.facts}
    return frozenset(found | {text for fact in told for text in (*fact.texts, fact.answer)})


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Return the sorted words of the whole closed domain: those of single questions and sentences, and of dialogs."""
    return tuple(sorted({word for text in texts() for word in text.split()} | set(world.vocabulary())))
