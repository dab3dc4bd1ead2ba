"""The bounded queue of events that wait to be sent to one client."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass
from typing import Any

from omnikit.serve.realtime.actions import Close

MOST_BYTES = 16 * 2**20
"""Maximum size of the events that wait; it holds four minutes of speech."""
AUDIO = "response.output_audio.delta"
"""Type of the events that carry speech, the only ones that may be dropped."""


@dataclass(frozen=True)
class _Waiting:
    text: str
    response_id: str | None
    """Answer whose speech the event carries; None for all other events."""


class Overflow(Exception):
    """Error raised when more waits for a client than it may: it sends, but does not read."""


class Outbox:
    """A queue of server events, from which the speech of a cancelled answer can be removed.

    Used in one event loop, by any number of tasks that put events and one that takes them.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._silenced: set[str] = set()
        self._bytes = 0
        self._close: Close | None = None
        self._filled = asyncio.Event()

    def put(self, event: dict[str, Any]) -> None:
        """Append an event; after `close`, and for speech of a silenced answer, do nothing.

        Raises:
            Overflow: more than `MOST_BYTES` would wait.
        """
        speech_of = event.get("response_id") if event.get("type") == AUDIO else None
        if self._close is not None or speech_of in self._silenced:
            return
        text = json.dumps(event, separators=(",", ":"))  # ASCII: texts of clients may hold lone surrogates
        waiting = _Waiting(text, speech_of)
        if self._bytes + len(waiting.text) > MOST_BYTES:
            raise Overflow
        self._bytes += len(waiting.text)
        self._waiting.append(waiting)
        self._filled.set()

    def silence(self, response_id: str) -> None:
        """Remove the speech of an answer, and drop what is put of it later."""
        self._silenced.add(response_id)
        kept = [waiting for waiting in self._waiting if waiting.response_id != response_id]
        self._waiting, self._bytes = deque(kept), sum(len(waiting.text) for waiting in kept)

    def forget(self, response_id: str) -> None:
        """Forget that an answer was silenced, of which no more speech will come."""
        self._silenced.discard(response_id)

    def close(self, close: Close) -> None:
        """End the queue: `take` returns `close` after the events that wait now."""
        if self._close is None:
            self._close = close
            self._filled.set()

    async def take(self) -> str | Close:
        """Wait for the next event and remove it; return it as JSON text, or `Close` at the end of the queue."""
        while not self._waiting:
            if self._close is not None:
                return self._close
            self._filled.clear()
            await self._filled.wait()
        waiting = self._waiting.popleft()
        self._bytes -= len(waiting.text)
        return waiting.text
