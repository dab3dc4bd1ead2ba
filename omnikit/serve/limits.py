"""Limits of each HTTP request: the size of its body, its time, and clients that do not read their answer."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack, suppress
from time import monotonic

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnikit.serve.refusals import Refusal, busy, internal_error
from omnikit.serve.security import HEALTH, client_of, refuse
from omnikit.serve.serving import Serving, draining

logger = logging.getLogger(__name__)
CLOSE = {"Connection": "close"}
"""Header of responses to requests whose body is not read to its end."""
UNCOUNTED = (HEALTH, "/metrics")
"""Paths that are answered until the server ends."""


class SlowReader(ConnectionError):
    """Error raised in an answer whose client has not read anything for too long."""


class Limits:
    """A middleware that bounds HTTP requests, and refuses new ones while the server drains.

    The sessions of WebSockets have their own limits, see `Serving.admit_session`.

    - More than `max_requests` at the same time are refused with 503, those beyond `max_requests_per_client` with 429.
    - A body larger than `max_body_mib` is refused with 413: at once if its header says so, else while it arrives.
    - A request whose body is missing after `request_seconds` is refused with 408, one whose response has not begun
      after twice that time with 503. A response ends that is not finished twice that time after it began.
    - An error of the application is answered with 500, and passed on to be counted and logged.
    - A response of which the client has not read anything for `send_buffer_seconds` is ended.

    Args:
        app: the application.
        serving: the server's systems and settings.
    """

    def __init__(self, app: ASGIApp, *, serving: Serving):
        self.app, self.serving = app, serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNCOUNTED:
            return await self.app(scope, receive, send)
        request = _Limited(self.serving, scope, receive, send)
        with ExitStack() as stack:
            try:
                stack.enter_context(self.serving.admit_request(client_of(scope), request))
            except Refusal as refusal:
                refusal.headers |= CLOSE
                return await request.refuse(refusal)
            await request.run(self.app)


class _Limited:
    """One request with its limits."""

    def __init__(self, serving: Serving, scope: Scope, receive: Receive, send: Send):
        self.settings, self.metrics = serving.settings, serving.metrics
        self.scope, self._receive, self._send = scope, receive, send
        self.began, self.size, self.complete = monotonic(), 0, False
        self.started = self.stopped = False
        self.timer: asyncio.Timeout | None = None

    async def run(self, app: ASGIApp) -> None:
        """Answer the request by an application, within the limits."""
        if self._announced() > self.settings.max_body_bytes:
            return await self.refuse(self._too_large())
        try:
            async with asyncio.timeout(2 * self.settings.request_seconds) as self.timer:
                await app(self.scope, self.receive, self.send)
        except (SlowReader, ClientDisconnect) as error:
            logger.info("a response was ended early: %s", error or "the client left")
        except Exception as error:
            if isinstance(error, TimeoutError) and self.timer.expired():
                return await self._end_late()
            if not self.started:  # Starlette would answer outside of all other middlewares, without their headers
                await self.refuse(internal_error())
            raise

    def stop(self) -> None:
        """End the request, as after its time."""
        self.stopped = True
        if self.timer is not None:
            with suppress(RuntimeError):  # its time is over already
                self.timer.reschedule(asyncio.get_running_loop().time())

    async def _end_late(self) -> None:
        self.metrics.refused("draining" if self.stopped else "time")
        words = f"no answer within {2 * self.settings.request_seconds:g} s"
        if self.started:
            logger.warning("a response was ended early: it was not finished in time")
        else:
            await self.refuse(draining() if self.stopped else busy(words))

    def _announced(self) -> int:
        """Return the size of the body by its header; 0 = there is no such header."""
        for name, value in self.scope["headers"]:
            if name == b"content-length" and value.isdigit():
                return int(value[:20])
        return 0

    def _too_large(self) -> Refusal:
        self.metrics.refused("size")
        words = f"the body is larger than {self.settings.max_body_mib:g} MiB"
        return Refusal(413, words, code="body_too_large", headers=CLOSE)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer the request with an error."""
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
            chunked = any(name == b"transfer-encoding" for name, _ in self.scope["headers"])
            if chunked and not self.complete:  # a server would read on, for ever if the body has no end
                MutableHeaders(scope=message)["Connection"] = "close"
        try:
            async with asyncio.timeout(self.settings.send_buffer_seconds):
                await self._send(message)
        except TimeoutError:
            raise SlowReader("the client does not read the response") from None
