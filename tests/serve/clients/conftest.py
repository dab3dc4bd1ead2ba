"""Fixtures of the tests with stock clients: a running server with the shipped system, and recorded speech."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from omnikit.api import Omni
from omnikit.serve.run import Server, bind
from omnikit.serve.serving import Serving
from omnikit.serve.settings import ServerSettings

QUESTIONS = Path(__file__).parents[3] / "egs/mini/questions"
RATE = 24000
TOKEN = "a-secret-token"


@dataclass
class Running:
    """A server that runs in a thread of the tests."""

    server: Server
    port: int
    token: str = TOKEN

    @property
    def serving(self) -> Serving:
        """The systems and sessions."""
        return self.server.serving

    @property
    def url(self) -> str:
        """Base URL for OpenAI's SDK."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def websocket(self) -> str:
        """URL of the Realtime protocol."""
        return f"ws://127.0.0.1:{self.port}/v1/realtime"

    def end(self) -> None:
        """Let the server end as at SIGTERM."""
        self.server.handle_exit(signal.SIGTERM, None)


@pytest.fixture(scope="session")
def long_omni(omni) -> Iterator[Omni]:
    """Return the shipped system with answers of at least 12 seconds, as there is time to interrupt them."""
    long = Omni(omni.model, decoding=replace(omni.decoding, min_steps=150), engine=omni.decoder.engine)
    yield long
    long.close()


@contextmanager
def running(systems: dict[str, Omni], **settings) -> Iterator[Running]:
    """Run a server in a thread."""
    settings = ServerSettings(port=0, token=TOKEN, **settings)
    with bind(settings) as sock:
        server = Server(Serving(settings, systems), sock)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])))
        thread.start()
        while not server.started:
            assert thread.is_alive()
            thread.join(0.02)
        yield Running(server, sock.getsockname()[1])
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def server(omni, long_omni) -> Iterator[Running]:
    """Run a server of two systems, `mini` and `long`."""
    with running({"mini": omni, "long": long_omni}) as server:
        yield server


@pytest.fixture
def serve(omni, long_omni) -> Iterator[Callable[..., Running]]:
    """Return a function that runs such a server with settings of its own."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running({"mini": omni, "long": long_omni}, **settings))


@pytest.fixture(scope="session")
def speech() -> Callable[[str], bytes]:
    """Return a function that returns a recorded question of the mini system as 16 bit PCM at 24 kHz."""

    def pcm(name: str) -> bytes:
        wav, rate = soundfile.read(QUESTIONS / f"{name}.wav", dtype="float32")
        return (soxr.resample(wav, rate, RATE) * 32767).astype("<i2").tobytes()

    return pcm


@pytest.fixture(scope="session")
def loudness() -> Callable[[bytes], float]:
    """Return a function that returns the root mean square of 16 bit PCM, in 0..1."""

    def of(pcm: bytes) -> float:
        return float(np.sqrt(np.mean((np.frombuffer(pcm, dtype="<i2") / 32768) ** 2)))

    return of
