"""A watch over the connections of a server: clients that neither send a request nor read their answer are cut off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Any

logger = logging.getLogger(__name__)
CHECK_SECONDS = 1.0
"""Seconds between two looks at all connections."""
REQUEST_SECONDS = 30.0
"""Seconds within which a client must have sent the head of a request, after it connected or got an answer."""


async def watch_connections(connections: Collection[Any], seconds: float) -> None:
    """Look at all connections again and again, and abort those that make no progress.

    A connection is aborted if data has waited for `seconds` for its client to read any, open or closing, or if its
    client has not sent a request in time. Without this, a client that stops reading keeps its connection, since closing
    waits for what is written already.

    Args:
        connections: connections of `uvicorn.server.ServerState`, which changes.
        seconds: maximum number of seconds without progress.
    """
    ages: dict[Any, _Progress] = {}
    while True:
        await asyncio.sleep(min(CHECK_SECONDS, seconds / 2))
        now = asyncio.get_running_loop().time()
        ages = {each: ages.get(each) or _Progress(now) for each in list(connections)}
        for connection, progress in ages.items():
            if reason := progress.problem(connection, now, seconds):
                logger.info("a connection was cut off: %s", reason)
                connection.transport.abort()


class _Progress:
    """The progress of one connection so far."""

    def __init__(self, now: float):
        self.asked = self.moved = now
        self.size = 0

    def problem(self, connection: Any, now: float, seconds: float) -> str:
        """Return why a connection is to be aborted; empty if it makes progress."""
        size = connection.transport.get_write_buffer_size()
        if size == 0 or size < self.size:
            self.moved = now
        self.size = size
        if now - self.moved >= seconds:
            return "its client does not read"
        cycle = getattr(connection, "cycle", connection)  # the current request of HTTP; a WebSocket has none
        if cycle is not None and not getattr(cycle, "response_complete", False):
            self.asked = now
        return "its client sent no request" if now - self.asked >= REQUEST_SECONDS else ""
