"""Grammar (JSGF) with which the judge of intelligibility recognises all texts of the mini corpus's closed domain.

Sentence templates are used as they are. Questions and answers are generalised to templates (`paris is the capital of
france` becomes `{city} is the capital of {country}`), so that the judge has to recognise which city and country it is.
The same is done with the turns of dialogs.
"""

from __future__ import annotations

import followups
import world

SLOT_ORDER = ("number", "day", "color", "thing", "country", "city", "adj", "way", "time", "when", "name")
"""Names of the template slots in order of preference for a word that fits several; the wider slot comes first."""


def grammar() -> str:
    """Return the grammar of all sentences, questions, answers and dialogs of the closed domain as JSGF text."""
    rules = [f"<{name}> = {' | '.join(values)};" for name, values in followups.SLOTS.items()]
    sentences = [template.replace("{", "<").replace("}", ">") for template in templates()]
    return "\n".join(["#JSGF V1.0;", "grammar world;", *rules, f"public <sentence> = {' | '.join(sentences)};"])


def templates() -> list[str]:
    """Return the sorted text templates of all sentences, questions, answers and dialogs of the closed domain."""
    spoken = followups.texts() | {text for question in world.questions() for text in (question.text, question.answer)}
    return sorted({generalised(text) for text in spoken} | set(world.SENTENCE_TEMPLATES))


def generalised(text: str) -> str:
    """Return a sentence in which every word that is a value of a template slot is replaced by the slot in braces."""
    return " ".join(f"{{{slot}}}" if (slot := _slot_of(word)) else word for word in text.split())


def _slot_of(word: str) -> str | None:
    return next((name for name in SLOT_ORDER if word in followups.SLOTS[name]), None)
