"""The rules by which VoiceBench scores choices, yes or no, and refusals without a judge.

The phrases are those of VoiceBench's own scorers, in the same order, since the first that fits decides; the file
`voicebench_rules.json` has them with their source. Some are wrong (`option b` alone counts as the first option, and
`the sentence .. is not plausible` may count as plausible) and stay as they are, so that figures can be compared.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from typing import Any

CHOICES = "ABCD"
"""Letters of the options of OpenBookQA and MMSU."""
YES_OR_NO = ("sports_understanding", "navigate", "web_of_lies")
"""Tasks of BBH that are answered by yes or no."""
BBH_TASKS = (*YES_OR_NO, "hyperbaton")
"""Tasks of BBH in VoiceBench; the id of a question contains the name of its task."""
_BBH_REFERENCES = {"no": 0, "yes": 1, "(a)": 0, "(b)": 1}
_PREFIXES, _SUFFIX = ("<1>", "<2>", "<3>"), "<|user|>"  # marks that some models leave in their answers
_SPACED = re.compile(r"\*\*|[:\"\-,.\uff1a]")  # what BBH's rules replace by a space


@cache
def _phrases() -> dict[str, Any]:
    """Return the content of `voicebench_rules.json`."""
    file = resources.files(__package__).joinpath("voicebench_rules.json")
    return json.loads(file.read_text(encoding="utf-8"))


@cache
def _choice_phrases() -> tuple[tuple[str, str], ...]:
    """Return pairs of a phrase and the letter that it means, in the order in which they are tried."""
    letters = CHOICES.lower()
    return tuple((phrase.replace("[CHOICE]", a), a) for phrase in _phrases()["choice"] for a in letters)


def choice(response: str) -> str | None:
    """Return the letter A to D that an answer chooses; None if no rule fits."""
    text = _without_prefix(response.lower())
    for phrase, letter in _choice_phrases():
        if phrase in text:
            return letter.upper()
    for letter in CHOICES.lower():
        if text == letter or text.startswith(tuple(letter + mark for mark in ".,:)")):
            return letter.upper()
    return None


def refuses(response: str) -> bool:
    """Return whether an answer refuses, by the phrases that it contains; an empty answer does."""
    text = response.lower()
    return not text.strip() or any(phrase.lower() in text for phrase in _phrases()["refusal"])


def bbh_task(name: str) -> str | None:
    """Return the task of a question of BBH by its id; None if it is none of VoiceBench's."""
    return next((task for task in BBH_TASKS if task in name), None)


def bbh_reference(reference: str) -> int | None:
    """Return 1 for yes or (b) and 0 for no or (a); None for any other text."""
    return _BBH_REFERENCES.get(reference.lower())


def bbh_answer(response: str, task: str) -> int | None:
    """Return what an answer to a question of BBH says, 1 for yes or (b) and 0 for no or (a); None if no rule fits.

    Args:
        response: the answer.
        task: one of `BBH_TASKS`.
    """
    text = _normalized(response)
    if task in YES_OR_NO:
        found = _first_rule("yes_or_no", text)
        if found is not None:
            return found
    return _first_rule(task, text)


def _first_rule(name: str, text: str) -> int | None:
    """Return the value of the first rule of a table that fits a normalized answer; None if none does."""
    return next((value for kind, phrase, value in _phrases()["bbh"][name] if _fits(kind, phrase, text)), None)


def _fits(kind: str, phrase: str, text: str) -> bool:
    if kind == "contains":
        return phrase in text
    if kind == "begins":
        return text.startswith(phrase)
    if kind == "ends":
        return text.endswith(phrase)
    return text == phrase if kind == "equals" else re.search(phrase, text) is not None


def _without_prefix(text: str) -> str:
    return text[3:].strip() if text.startswith(_PREFIXES) else text


def _normalized(response: str) -> str:
    """Return an answer to BBH in lower case, with spaces for punctuation and without marks of models."""
    text = response.lower()
    if text.endswith(_SUFFIX):
        text = text.removesuffix(_SUFFIX).strip()
    text = _without_prefix(text).replace("<|turn_end|>", "")
    return " ".join(_SPACED.sub(" ", text).split())


def with_random_draws(right: int, unparsed: int, options: int, count: int) -> float:
    """Return the percentage that VoiceBench's scorer gives in the mean.

    It draws one of the options at random, without a seed, for an answer that no rule fits.

    Args:
        right: number of answers that are right.
        unparsed: number of answers that no rule fits.
        options: number of options to draw from.
        count: number of all answers.
    """
    return 100 * (right + unparsed / options) / count


def draws_vary_by(unparsed: int, options: int, count: int) -> float:
    """Return the standard deviation of the percentage of `with_random_draws` over the scorer's draws."""
    chance = 1 / options
    return 100 * (unparsed * chance * (1 - chance)) ** 0.5 / count
