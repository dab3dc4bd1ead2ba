"""The judge's grammar: everything that can be said in the closed world, as JSGF.

Templates with slots stay as they are. Questions and answers get their slots back (`paris is the capital of france`
becomes `{city} is the capital of {country}`), so that the judge must hear which city and country it was.
"""

from __future__ import annotations

import world

SLOT_ORDER = ("number", "day", "color", "thing", "country", "city", "adj", "way", "time", "when")
"""Which slot a word is taken to fill where several could; the wider one first."""


def grammar() -> str:
    """The whole world as one JSGF grammar."""
    rules = [f"<{name}> = {' | '.join(values)};" for name, values in world.SLOTS.items()]
    sentences = [template.replace("{", "<").replace("}", ">") for template in templates()]
    return "\n".join(["#JSGF V1.0;", "grammar world;", *rules, f"public <sentence> = {' | '.join(sentences)};"])


def templates() -> list[str]:
    """The sentence templates, and those of all questions and answers."""
    spoken = {text for question in world.questions() for text in (question.text, question.answer)}
    return sorted({generalised(text) for text in spoken} | set(world.SENTENCE_TEMPLATES))


def generalised(text: str) -> str:
    """A sentence with every word that can fill a slot replaced by that slot."""
    return " ".join(f"{{{slot}}}" if (slot := _slot_of(word)) else word for word in text.split())


def _slot_of(word: str) -> str | None:
    return next((name for name in SLOT_ORDER if word in world.SLOTS[name]), None)
