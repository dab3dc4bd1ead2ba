"""The facts that follow-up questions of the mini corpus are about: statements of the user, and known questions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import world
from world import CAPITALS, COLORS, DAYS, NUMBERS

NAMES = world.words("anna tom emma paul lisa ben nina leo jack peter kate oscar mary david")


@dataclass(frozen=True)
class Fact:
    """A statement or question that follow-ups are about: its wordings, and the answer to all of them."""

    texts: tuple[str, ...]
    answer: str

    @property
    def key(self) -> str:
        return self.texts[0]


def called(name: str) -> Fact:
    return Fact((f"my name is {name}", f"i am {name}", f"call me {name}"), f"hello {name}")


def comes_from(country: str) -> Fact:
    return Fact((f"i am from {country}",), f"you are from {country}")


def friend(name: str) -> Fact:
    return Fact((f"my friend is {name}", f"{name} is my friend"), f"{name} is your friend")


def friend_from(country: str) -> Fact:
    return Fact((f"my friend is from {country}",), f"your friend is from {country}")


def likes(color: str) -> Fact:
    return Fact((f"i like {color}", f"my favorite color is {color}"), f"you like {color}")


def sees(thing: str) -> Fact:
    return Fact((f"i see the {thing}",), f"you see the {thing}")


def word(said: str) -> Fact:
    return Fact((f"remember the word {said}", f"the word is {said}"), f"the word is {said}")


def number(said: str) -> Fact:
    return Fact((f"remember the number {said}", f"my number is {said}"), said)


def two_numbers(a: str, b: str) -> Fact:
    both = f"{a} and {b}"
    return Fact((f"remember {both}", f"my numbers are {both}"), both)


def favorite_day(day: str) -> Fact:
    return Fact((f"my favorite day is {day}",), f"{day} is a good day")


def favorite_city(city: str) -> Fact:
    return Fact((f"my favorite city is {city}",), f"{city} is a good city")


def comes(name: str, day: str) -> Fact:
    return Fact((f"{name} comes {day}",), f"yes {name} comes {day}")


def is_in(name: str, place: str) -> Fact:
    return Fact((f"{name} is in {place}",), f"yes {name} is in {place}")


def weather(adjective: str, country: str) -> Fact:
    return Fact((f"it is {adjective} in {country}",), f"yes it is {adjective} in {country}")


def quality(thing: str, adjective: str) -> Fact:
    return Fact((f"the {thing} is {adjective}",), f"yes the {thing} is {adjective}")


def thinks_of(what: str) -> Fact:
    return Fact((f"i think of {what}",), f"you think of {what}")


def age(years: str) -> Fact:
    return Fact((f"i am {years} years old",), f"you are {years} years old")


def counts(start: int) -> Fact:
    return Fact((f"count from {NUMBERS[start]}",), " ".join(NUMBERS[start : start + 3]))


@cache
def questions(kind: str) -> tuple[Fact, ...]:
    """Return the known questions of a kind as facts; questions with the same answer are wordings of one fact."""
    texts: dict[str, list[str]] = {}
    for q in world.known_questions():
        if q.kind == kind:
            texts.setdefault(q.answer, []).append(q.text)
    return tuple(Fact(tuple(found), answer) for answer, found in texts.items())


def wordings() -> list[Fact]:
    """Return every wording of the known questions, without greetings, as a fact of its own."""
    return [Fact((q.text,), q.answer) for q in world.known_questions() if q.kind != "greeting"]


def statements() -> list[Fact]:
    """Return every wording of a selection of statements as a fact of its own."""
    told = [*map(called, NAMES), *map(comes_from, CAPITALS), *map(friend, NAMES), *map(friend_from, CAPITALS)]
    told += [*map(likes, COLORS), *map(favorite_day, DAYS), *map(favorite_city, CAPITALS.values())]
    told += [*map(age, NUMBERS[2:]), *(comes(n, DAYS[i % 7]) for i, n in enumerate(NAMES))]
    return [Fact((text,), fact.answer) for fact in told for text in fact.texts]
