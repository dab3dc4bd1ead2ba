"""Fixtures of the tests with stock clients: a running server with the shipped system, and recorded speech."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import uvicorn

from omnikit.api import Omni
from omnikit.serve.app import create_app
from omnikit.serve.serving import Serving
from omnikit.serve.settings import ServerSettings

QUESTIONS = Path(__file__).parents[3] / "egs/mini/questions"
RATE = 24000
TOKEN = "a-secret-token"


@dataclass
class Server:
    """A server that runs in a thread of the tests."""

    port: int
    serving: Serving
    token: str = TOKEN

    @property
    def url(self) -> str:
        """Base URL of OpenAI's SDK."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def websocket(self) -> str:
        """URL of the Realtime protocol."""
        return f"ws://127.0.0.1:{self.port}/v1/realtime"


@pytest.fixture(scope="session")
def long_omni(omni) -> Iterator[Omni]:
    """Return the shipped system with answers of at least 12 seconds, as there is time to interrupt them."""
    long = Omni(omni.model, decoding=replace(omni.decoding, min_steps=150), engine=omni.decoder.engine)
    yield long
    long.close()


@pytest.fixture(scope="session")
def server(omni, long_omni) -> Iterator[Server]:
    """Run a server of two systems, `mini` and `long`."""
    serving = Serving(ServerSettings(token=TOKEN), {"mini": omni, "long": long_omni})
    config = uvicorn.Config(create_app(serving), port=0, log_level="warning", ws_per_message_deflate=False)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        thread.join(0.02)
    yield Server(running.servers[0].sockets[0].getsockname()[1], serving)
    running.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


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
