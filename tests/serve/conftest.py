"""Fixtures of the server's tests: the shipped system, an application over it, and a running server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import omnikit
from omnikit.api import Omni
from omnikit.serve.app import create_app
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
