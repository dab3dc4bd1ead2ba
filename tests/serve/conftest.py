"""Fixtures of the server's tests: the shipped system, an application over it, and a running server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import omnikit
from omnikit.api import Omni
from omnikit.serve.app import create_app
from omnikit.serve.run import Server, bind
from omnikit.serve.serving import Serving
from omnikit.serve.settings import ServerSettings

QUESTION = Path(__file__).parents[2] / "egs/mini/questions/sum.wav"
"""Recording of the question what is two plus two."""
NAME = "mini"
"""Name under which the tests serve the shipped system."""


@pytest.fixture(scope="session")
def omni() -> Iterator[Omni]:
    """Return the shipped system, loaded once; its answers are deterministic."""
    system = omnikit.load()
    system.decoding = replace(system.decoding, max_steps=200)
    yield system
    system.close()


@pytest.fixture
def serving(omni) -> Callable[..., Serving]:
    """Return a function that makes a `Serving` of the shipped system; its arguments are settings."""

    def make(**settings) -> Serving:
        return Serving(ServerSettings(**settings), {NAME: omni})

    return make


@contextmanager
def running(serving: Serving, add: Callable[[FastAPI], None] | None = None) -> Iterator[Server]:
    """Context manager that runs a server on a free port in a thread, and ends it with its sessions and requests.

    Args:
        serving: what it serves; its setting `port` must be 0.
        add: function that adds routes to the application before the page, which takes all other paths.
    """
    with bind(serving.settings) as sock:
        server = Server(serving, sock)
        if add is not None:
            routes = server.config.app.router.routes
            before = len(routes)
            add(server.config.app)
            routes[:] = routes[before:] + routes[:before]
        thread = Thread(target=lambda: asyncio.run(server.serve([sock])), daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield server
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until a condition is met; fail the test if that takes too long."""
    end = monotonic() + seconds
    while not condition():
        assert monotonic() < end, "waited in vain"
        sleep(0.01)


@pytest.fixture
def server(serving) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server over the shipped system on a free port; `url` is its address.

    Its arguments are settings, and `add`, see `running`.
    """
    with ExitStack() as stack:

        def start(add: Callable[[FastAPI], None] | None = None, **settings) -> Server:
            return stack.enter_context(running(serving(port=0, **settings), add))

        yield start


@pytest.fixture
def client(serving) -> Iterator[Callable[..., TestClient]]:
    """Return a function that makes a client of a new application over the shipped system; its arguments are settings.

    All its requests and WebSockets use one event loop, as in a server.
    """
    opened = []

    def make(**settings) -> TestClient:
        app = create_app(serving(**settings))
        opened.append(TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False).__enter__())
        return opened[-1]

    yield make
    for each in opened:
        each.__exit__(None, None, None)
