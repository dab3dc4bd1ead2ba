"""Texts as people say them to a device: single words, lists word by word, hesitations, and sentences begun and cut.

An utterance is spoken in parts with silence between them. Its transcript has no hesitations: speech recognisers of
today leave them out (Whisper was trained on such transcripts, and its text normalisation removes `uh` and `um`), an
assistant has no use for them, and the vocabulary remains closed.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import facts
import followups
import world

HESITATIONS = ("uh", "um", "er")
PAUSE_SECONDS = (0.05, 0.5)
DIGITS = world.NUMBERS[:10]
DIGIT_SHARE, SINGLE_SHARE = 0.6, 0.35
"""Shares of digits among the words of a string, and of single words among the strings."""
LONGEST = 7
"""Maximum number of words of a string or a list."""
RECURRING = 3
"""Maximum number of words of an utterance that may be in a test split and in training, because there are few such."""

_LISTS = [
    world.NUMBERS,
    world.NUMBERS[::-1],
    world.DAYS,
    world.COLORS,
    list(world.THING_COLOR),
    list(world.CAPITALS),
    list(world.CAPITALS.values()),
    facts.NAMES,
]


@dataclass(frozen=True)
class Utterance:
    """A transcript, and the parts in which it is spoken, each with the seconds of silence after it."""

    text: str
    parts: tuple[tuple[str, float], ...]


def draw(rng: random.Random) -> Utterance:
    """Return a random utterance: a string of words in six of ten cases, else a list, a hesitation or a cut sentence."""
    make = rng.choices((_string, _list, _hesitating_sentence, _cut_sentence), (60, 12, 18, 10))[0]
    return make(rng)


def _string(rng: random.Random) -> Utterance:
    count = 1 if rng.random() < SINGLE_SHARE else rng.randint(2, LONGEST)
    words = [rng.choice(DIGITS if rng.random() < DIGIT_SHARE else followups.vocabulary()) for _ in range(count)]
    return _word_by_word(words, rng)


def _list(rng: random.Random) -> Utterance:
    """Return some words of a list, either in its order, such as days of the week, or mixed."""
    values = rng.choice(_LISTS)
    count = rng.randint(2, min(LONGEST, len(values)))
    start = rng.randint(0, len(values) - count)
    return _word_by_word(values[start : start + count] if rng.random() < 0.5 else rng.sample(values, count), rng)


def _word_by_word(words: list[str], rng: random.Random) -> Utterance:
    return Utterance(" ".join(words), _with_pauses(words, rng))


def _with_pauses(parts: list[str], rng: random.Random) -> tuple[tuple[str, float], ...]:
    """Return parts with a random pause after each but the last."""
    return (*((part, pause(rng)) for part in parts[:-1]), (parts[-1], 0.0))


def pause(rng: random.Random) -> float:
    """Return a random length of silence in seconds."""
    return round(rng.uniform(*PAUSE_SECONDS), 3)


def _hesitating_sentence(rng: random.Random) -> Utterance:
    return hesitating(rng.choice(_dialog_texts()) if rng.random() < 0.5 else world.template_sentence(rng), rng)


@lru_cache(maxsize=1)
def _dialog_texts() -> list[str]:
    return sorted(followups.texts())


def hesitating(text: str, rng: random.Random) -> Utterance:
    """Return an utterance of a text with a hesitation before it or within it, or with a pause within it."""
    words = text.split()
    place = rng.randrange(len(words))
    before, after = " ".join(words[:place]), " ".join(words[place:])
    filler = [] if place and rng.random() < 1 / 3 else [rng.choice(HESITATIONS)]
    return Utterance(text, _with_pauses([part for part in (before, *filler, after) if part], rng))


def _cut_sentence(rng: random.Random) -> Utterance:
    """Return the beginning of a sentence, cut after a word; the comma makes its intonation that of going on."""
    words = world.template_sentence(rng).split()
    begun = " ".join(words[: rng.randint(1, len(words) - 1)])
    return Utterance(begun, ((f"{begun},", 0.0),))


def distinct(count: int, seen: set[str], never: Collection[str], rng: random.Random) -> list[Utterance]:
    """Return random utterances that have none of the sums that are kept from the sentences.

    Args:
        seen: texts that longer utterances must not have; it grows by theirs. Short ones may recur.
        never: texts that no utterance may have.
    """
    found: list[Utterance] = []
    while len(found) < count:
        made = draw(rng)
        long = not recurs(made.text)
        if (long and made.text in seen) or made.text in never or world.mentions_sum(made.text, world.UNREAD_SUMS):
            continue
        if long:
            seen.add(made.text)
        found.append(made)
    return found


def recurs(text: str) -> bool:
    """Return whether a text is so short that it may be in a test split and in training."""
    return len(text.split()) <= RECURRING
