"""The systems that a server serves, under their names, and its open sessions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Protocol

from omnikit.api import Omni
from omnikit.serve.client_limits import ClientLimits
from omnikit.serve.metrics import Metrics
from omnikit.serve.refusals import Refusal, busy
from omnikit.serve.settings import ServerSettings

OPENAI_NAME = re.compile(r"(gpt|chatgpt|tts|whisper|o\d)[\w.-]*", re.ASCII)
"""Regular expression of OpenAI's names of models, one of which clients send unless told otherwise."""


class UnknownModel(Refusal):
    """Error raised for the name of a model that is not served."""

    def __init__(self, name: str, served: list[str]):
        shown = name if len(name) <= 100 else f"{name[:100]}..."
        message = f"model {shown!r}: not served (choices: {', '.join(served)})"
        super().__init__(404, message, code="model_not_found", param="model")


class Stoppable(Protocol):
    """A request that can be ended from outside."""

    def stop(self) -> None:
        """End the request."""


class Serving:
    """The systems and sessions of one server; all methods but those of `Omni` belong to its event loop.

    Args:
        settings: settings and limits.
        systems: mapping from the name of each system to the system, at least one.
        metrics: figures that the server reports.
    """

    def __init__(self, settings: ServerSettings, systems: Mapping[str, Omni], metrics: Metrics | None = None):
        if not systems:
            raise ValueError("systems: none is given")
        self.settings, self.systems, self.metrics = settings, dict(systems), metrics or Metrics()
        self.draining = False
        """Whether the server is about to end: it finishes what runs, and accepts nothing new."""
        self.running: set[Stoppable] = set()
        """HTTP requests that are being answered."""
        self._open_sessions = ClientLimits("sessions", settings.max_sessions, settings.max_sessions_per_client)
        self._open_requests = ClientLimits("requests", settings.max_requests, settings.max_requests_per_client)
        self._waiters: set[asyncio.Future[None]] = set()
        for name, omni in self.systems.items():
            self._watch(name, omni)

    def _watch(self, name: str, omni: Omni) -> None:
        decoder = omni.decoder
        self.metrics.watch(name, lambda: decoder.load[0], lambda: decoder.load[1], decoder.capacity)

    def name_of(self, model: str | None) -> str:
        """Return the name of the served system for the model name that a client sends.

        None means the first system. If a single system is served, all names of OpenAI's models mean it, too, since
        clients send such a name unless they are told another.

        Raises:
            UnknownModel: there is no such system.
        """
        first = next(iter(self.systems))
        if model is None or model in self.systems:
            return first if model is None else model
        if len(self.systems) == 1 and OPENAI_NAME.fullmatch(model):
            return first
        raise UnknownModel(model, list(self.systems))

    def system(self, model: str | None) -> Omni:
        """Return the served system for the model name that a client sends, see `name_of`.

        Raises:
            UnknownModel: there is no such system.
        """
        return self.systems[self.name_of(model)]

    @property
    def sessions(self) -> int:
        """Number of open Realtime sessions."""
        return len(self._open_sessions)

    @contextmanager
    def admit_session(self, client: str) -> Iterator[None]:
        """Context manager that counts a Realtime session while it is open.

        Args:
            client: address of the client, without its port.

        Raises:
            Refusal: the server is about to end, or the maximum number of sessions is open.
        """
        try:
            with self._taken(self._open_sessions, client):
                self.metrics.sessions.set(self.sessions)
                yield
        finally:
            self.metrics.sessions.set(self.sessions)

    @contextmanager
    def admit_request(self, client: str, request: Stoppable) -> Iterator[None]:
        """Context manager that counts an HTTP request while it is answered.

        Args:
            client: address of the client, without its port.
            request: the request, which `stop` ends.

        Raises:
            Refusal: the server is about to end, or the maximum number of requests is being answered.
        """
        with self._taken(self._open_requests, client):
            self.running.add(request)
            try:
                yield
            finally:
                self.running.discard(request)

    @contextmanager
    def _taken(self, limits: ClientLimits, client: str) -> Iterator[None]:
        """Context manager that takes a place, and counts a refusal."""
        if self.draining:
            self.metrics.refused("draining")
            raise draining()
        with ExitStack() as stack:
            try:
                stack.enter_context(limits.taken(client))
            except Refusal:
                self.metrics.refused(limits.what)
                raise
            yield

    def drain(self) -> None:
        """Begin to end: accept nothing new, and wake those that wait for it."""
        self.draining = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until_draining(self) -> None:
        """Wait until the server is about to end; sessions close themselves then, after a running answer."""
        if self.draining:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    @property
    def idle(self) -> bool:
        """Whether no request is being answered and no session is open."""
        return not self.running and not self.sessions

    def stop(self) -> None:
        """End the HTTP requests that are still being answered."""
        for request in list(self.running):
            request.stop()

    def close(self) -> None:
        """Cancel all answers and end the decoding threads of all systems."""
        for omni in self.systems.values():
            omni.close()


def steps_of(omni: Omni, asked: int | None) -> int:
    """Return the maximum number of decode steps of an answer: the client's if it is below the system's."""
    most = omni.decoding.max_steps
    return most if asked is None else min(most, asked)


def limits_of(omni: Omni, settings: ServerSettings) -> ServerSettings:
    """Return the settings with `max_audio_seconds` lowered to the encoder's limit where that is less."""
    most = omni.model.encoder.max_seconds
    return settings if most is None or most >= settings.max_audio_seconds else replace(settings, max_audio_seconds=most)


def draining() -> Refusal:
    """Return the refusal of a server that is about to end."""
    return busy("the server is about to end", "server_draining", 5)
