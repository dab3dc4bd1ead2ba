"""Texts of the latest spoken answers, to which clients refer by the ids of their audio in later messages."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

SECONDS = 3600
"""Seconds after which an answer is forgotten, the `expires_at` of OpenAI's clients."""
MOST = 1024
"""Maximum number of answers whose texts are stored."""


class SpokenAnswers:
    """The texts of the latest spoken answers, in memory.

    They are forgotten after an hour, when `MOST` newer ones have come, and when the server ends. Neither their audio
    nor any question is stored.

    Args:
        now: clock, in seconds since 1970.
    """

    def __init__(self, now: Callable[[], float] = time.time):
        self._now = now
        self._texts: OrderedDict[str, tuple[str, int]] = OrderedDict()

    def new_id(self) -> str:
        """Return an id that nobody can guess."""
        return f"audio_{uuid.uuid4().hex}"

    def store(self, audio_id: str, text: str) -> int:
        """Store the text of an answer, and return the time at which it will be forgotten."""
        expires = int(self._now()) + SECONDS
        self._texts[audio_id] = text, expires
        while len(self._texts) > MOST or self._oldest_expired():
            self._texts.popitem(last=False)
        return expires

    def text(self, audio_id: str) -> str | None:
        """Return the text of an answer; None = it is unknown or forgotten."""
        text, expires = self._texts.get(audio_id, (None, 0))
        return text if expires > self._now() else None

    def _oldest_expired(self) -> bool:
        return next(iter(self._texts.values()))[1] <= self._now()


def _of_app(request: Request) -> SpokenAnswers:
    state = request.app.state
    if not hasattr(state, "spoken_answers"):
        state.spoken_answers = SpokenAnswers()
    return state.spoken_answers


Spoken = Annotated[SpokenAnswers, Depends(_of_app)]
