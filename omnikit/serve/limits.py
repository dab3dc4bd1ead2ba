"""Limits of each HTTP request: the size of its body, its time, and clients that do not read their answer."""

from __future__ import annotations

import asyncio
from time import monotonic

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnikit.serve.refusals import Refusal, busy
from omnikit.serve.security import HEALTH, refuse
from omnikit.serve.serving import Serving, draining

CLOSE = {"Connection": "close"}
"""Header of responses to requests whose body is not read to its end."""
UNCOUNTED = (HEALTH, "/metrics")
"""Paths that are answered until the server ends."""


class SlowReader(ConnectionError):
    """Error raised in an answer whose client has not read anything for too long."""


class Limits:
    """A middleware that bounds each request, and refuses new ones while the server drains.

    - A body larger than `max_body_mib` is refused with 413: at once if its header says so, else while it arrives.
    - A request whose response has not begun after twice `request_seconds` is refused with 503, one whose body is
      missing after `request_seconds` with 408.
    - A response of which the client has not read anything for `send_buffer_seconds` is ended.

    Args:
        app: the application.
        serving: the server's systems and settings.
    """

    def __init__(self, app: ASGIApp, *, serving: Serving):
        self.app, self.serving = app, serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in UNCOUNTED:
            return await self.app(scope, receive, send)
        if self.serving.draining:
            self.serving.metrics.refused("draining")
            return await refuse(draining(), scope, receive, send)
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        self.serving.requests += 1
        try:
            await _Limited(self.serving, scope, receive, send).run(self.app)
        finally:
            self.serving.requests -= 1


class _Limited:
    """One request with its limits."""

    def __init__(self, serving: Serving, scope: Scope, receive: Receive, send: Send):
        self.settings, self.metrics = serving.settings, serving.metrics
        self.scope, self._receive, self._send = scope, receive, send
        self.began, self.size, self.complete = monotonic(), 0, False
        self.started = False
        self.timer: asyncio.Timeout | None = None

    async def run(self, app: ASGIApp) -> None:
        if self._announced() > self.settings.max_body_bytes:
            return await self._refuse(self._too_large())
        most = 2 * self.settings.request_seconds
        try:
            async with asyncio.timeout(most) as self.timer:
                await app(self.scope, self.receive, self.send)
        except TimeoutError:
            if not self.timer.expired():
                raise
            self.metrics.refused("time")
            if self.started:
                raise SlowReader(f"the response was not finished within {most:g} s") from None
            await self._refuse(busy(f"no answer within {most:g} s"))

    def _announced(self) -> int:
        for name, value in self.scope["headers"]:
            if name == b"content-length" and value.isdigit():
                return int(value[:20])
        return 0

    def _too_large(self) -> Refusal:
        self.metrics.refused("size")
        words = f"the body is larger than {self.settings.max_body_mib:g} MiB"
        return Refusal(413, words, code="body_too_large", headers=CLOSE)

    async def _refuse(self, refusal: Refusal) -> None:
        await refuse(refusal, self.scope, self._receive, self._send)

    async def receive(self) -> Message:
        """Receive a part of the body, within the time that is left for it.

        Raises:
            HTTPException: the body is too large or too slow; an exception that FastAPI passes on while it reads.
        """
        if self.complete:
            return await self._receive()
        try:
            async with asyncio.timeout(self.began + self.settings.request_seconds - monotonic()):
                message = await self._receive()
        except TimeoutError:
            self.metrics.refused("time")
            raise HTTPException(408, "the body did not arrive in time", CLOSE) from None
        self.complete = not message.get("more_body", False)
        self.size += len(message.get("body", b""))
        if self.size > self.settings.max_body_bytes:
            raise HTTPException(413, self._too_large().message, CLOSE)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the response.

        Raises:
            SlowReader: the client does not read.
        """
        if message["type"] == "http.response.start":
            self.started = True
            self.timer.reschedule(asyncio.get_running_loop().time() + 2 * self.settings.request_seconds)
        try:
            async with asyncio.timeout(self.settings.send_buffer_seconds):
                await self._send(message)
        except TimeoutError:
            raise SlowReader("the client does not read the response") from None
