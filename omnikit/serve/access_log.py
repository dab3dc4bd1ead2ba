"""The access log: one line per request, without query strings, headers or anything of a body."""

from __future__ import annotations

import logging
from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnikit.serve.limits import UNCOUNTED
from omnikit.serve.metrics import Metrics
from omnikit.serve.security import client_of

logger = logging.getLogger(__name__)


class AccessLog:
    """A middleware that logs and counts responses.

    A line has the client's address, the method, the path as it was sent, the status and the seconds that it took. That
    of a WebSocket is written at its end. Requests of `/health` and `/metrics` are logged at level DEBUG.

    Args:
        app: the application.
        metrics: figures in which responses are counted.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        began, status = monotonic(), 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            elif message["type"] == "websocket.close" and status == 500:
                status = 403  # closed before it was accepted
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            self.metrics.responses.labels(str(status)).inc()
            level = logging.DEBUG if scope["path"] in UNCOUNTED else logging.INFO
            called = (client_of(scope) or "-", scope.get("method", "WEBSOCKET"), _path(scope))
            logger.log(level, "%s %s %s %d %.3f s", *called, status, monotonic() - began)


def _path(scope: Scope) -> str:
    """Return the path in percent encoding, which has no line breaks."""
    raw = scope.get("raw_path") or b"-"
    return raw.partition(b"?")[0][:200].decode("ascii", errors="backslashreplace")
