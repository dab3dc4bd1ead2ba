"""The process of `omnikit serve`: systems are loaded, calls answered, and at SIGTERM running ones finished."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

import torch
import uvicorn

from omnikit.api import FLOAT32, Omni, load
from omnikit.codecs.none import NoCodec
from omnikit.engines import AUTO
from omnikit.generate import Decoding
from omnikit.hub import is_hub_id
from omnikit.option_ranges import COUNT_OR_NONE
from omnikit.serve.app import create_app
from omnikit.serve.connections import watch_connections
from omnikit.serve.realtime import voice_activity
from omnikit.serve.security import check_exposure
from omnikit.serve.serving import Serving
from omnikit.serve.settings import ServerSettings
from omnikit.streaming import LOW_LATENCY
from omnikit.torchrun import cores

SHIPPED = "mini"
"""Name under which the system of the package is served."""
_NAME = re.compile(r"[\w.:-]+(/[\w.:-]+)?", re.ASCII)
_GIVEN_NAME = re.compile(r"([\w.:-]+)=(.+)", re.ASCII)
_POLL_SECONDS = 0.05
_ABORT_SECONDS = 1
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SystemOptions:
    """Options with which all served systems are loaded, see `omnikit.api.load`.

    Raises:
        ValueError: a number outside its range.
    """

    device: str = "cpu"
    engine: str = AUTO
    dtype: str = FLOAT32
    slots: int | None = None
    """Maximum number of answers that each system decodes together; None = `omnikit.generate.running_batch.CAPACITY`."""
    max_steps: int | None = None
    """Maximum number of decode steps of an answer; None = that of `omnikit.generate.Decoding`."""
    weights: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        COUNT_OR_NONE.check("slots", self.slots)
        COUNT_OR_NONE.check("max_steps", self.max_steps)


def run(checkpoints: Sequence[str], settings: ServerSettings, options: SystemOptions) -> None:
    """Serve checkpoints until SIGTERM or Ctrl-C; the first ends the server gently, the second at once.

    Args:
        checkpoints: folders or hub ids, each of which may be named by `NAME=` before it; empty = the shipped system.
        settings: settings and limits of the server.
        options: options of the systems.

    Raises:
        ValueError: a checkpoint cannot be loaded, the address cannot be listened on, the weights of the turn detection
            are missing, or bad settings.
        SystemExit: the server was ended at once.
    """
    check_exposure(settings)
    check_certificate(settings)
    named = name_checkpoints(checkpoints)
    voice_activity.shipped()
    _log_to_stderr()
    leave_a_core(options.device)
    with bind(settings) as sock:
        systems = {name: load_system(folder, settings, options) for name, folder in named.items()}
        serving = Serving(settings, systems)
        server = Server(serving, sock)
        try:
            asyncio.run(server.serve(sockets=[sock]))
        finally:
            serving.close()
    if server.force_exit:
        raise SystemExit(128 + server.signal)


def leave_a_core(device: str) -> None:
    """Limit torch on a CPU to all cores but one, which is left for the event loop and the turn detection.

    The environment variable OMP_NUM_THREADS overrides it.
    """
    if torch.device(device).type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() - 1))


def name_checkpoints(checkpoints: Sequence[str]) -> dict[str, str | None]:
    """Return a mapping from the name of each checkpoint to its folder or hub id; None = the system of the package.

    A folder without a name is called like its last part, a hub id like itself.

    Raises:
        ValueError: two have the same name, or one has a name that cannot stand in a request.
    """
    found: dict[str, str | None] = {}
    for text in checkpoints:
        given = _GIVEN_NAME.fullmatch(text)
        name, folder = given.groups() if given else (_name_of(text), text)
        if not _NAME.fullmatch(name):
            raise ValueError(f"--checkpoint {text}: {name!r} cannot be a name; write NAME={folder}")
        if name in found:
            raise ValueError(f"--checkpoint {text}: another one is called {name}, too; write NAME={folder}")
        found[name] = folder
    return found or {SHIPPED: None}


def _name_of(checkpoint: str) -> str:
    return checkpoint if is_hub_id(checkpoint) else Path(checkpoint).resolve().name


def load_system(checkpoint: str | None, settings: ServerSettings, options: SystemOptions) -> Omni:
    """Load a system with the server's limits, and let it answer once, so that the first client need not wait for that.

    Raises:
        ValueError: it cannot be loaded, or cannot answer.
    """
    given = {} if options.max_steps is None else {"max_steps": options.max_steps}
    Decoding(**given)
    omni = load(checkpoint, device=options.device, engine=options.engine, dtype=options.dtype, weights=options.weights)
    omni.decoding = replace(omni.decoding, time_limit=settings.request_seconds, **given)
    if options.slots is not None:
        omni.decoder = omni.decoder.with_capacity(options.slots)
    omni.decoder.most_waiting, omni.decoder.wait_seconds = settings.max_waiting, settings.wait_seconds
    warm_up(omni)
    return omni


def warm_up(omni: Omni) -> None:
    """Let a system answer a second of silence with a few steps."""
    question = omni.spoken_question(torch.zeros(omni.model.encoder.sample_rate))
    decoding = omni.decoding
    omni.decoding = replace(decoding, max_steps=16)
    task, sound = ("A1T2", None) if isinstance(omni.model.codec, NoCodec) else ("A1A2", LOW_LATENCY)
    try:
        omni.submit(task, question, sound=sound).wait()
    finally:
        omni.decoding = decoding


def bind(settings: ServerSettings) -> socket.socket:
    """Return a socket that is bound to the server's address; it does not listen before the server is ready.

    Raises:
        ValueError: the address or the port cannot be used.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"--host {settings.host} --port {settings.port}: {reason}") from None
    return sock


def check_certificate(settings: ServerSettings) -> None:
    """Check that the certificate and its key can be used.

    Raises:
        ValueError: one of them is missing, unreadable, or does not fit.
    """
    certificate, key = settings.ssl_certfile, settings.ssl_keyfile
    if certificate is None and key is None:
        return
    if certificate is None:
        raise ValueError(f"--ssl_keyfile {key}: --ssl_certfile is missing, the certificate that the key belongs to")
    for flag, file in (("ssl_certfile", certificate), ("ssl_keyfile", key)):
        if file is not None and not Path(file).is_file():
            raise ValueError(f"--{flag} {file}: no such file")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: b"")
    except (OSError, ValueError) as error:
        named = f"--ssl_certfile {certificate}" + ("" if key is None else f" --ssl_keyfile {key}")
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"{named}: no certificate with its unencrypted key in PEM format ({reason})") from None


def _log_to_stderr() -> None:
    """Write the server's own log and errors of uvicorn, whose other lines show query strings, to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("omnikit.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        log = logging.getLogger(name)
        log.setLevel(level)
        log.handlers, log.propagate = [handler], False


def _milder(record: logging.LogRecord) -> bool:
    """Log a WebSocket message that is not UTF-8 as a one-line warning; uvicorn logs it as an error with its stack."""
    if record.getMessage().startswith("Invalid UTF-8 sequence"):
        record.levelno, record.levelname, record.exc_info = logging.WARNING, "WARNING", None
    return True


class Server(uvicorn.Server):
    """A uvicorn server that at the first signal finishes what runs, and at the second ends at once.

    Args:
        serving: the systems.
        sock: bound socket.
    """

    def __init__(self, serving: Serving, sock: socket.socket):
        settings = serving.settings
        config = uvicorn.Config(
            create_app(serving), http="h11", ws="websockets-sansio", loop="asyncio", lifespan="off", log_config=None,
            access_log=False, server_header=False, ws_max_size=settings.max_body_bytes, ws_per_message_deflate=False,
            timeout_graceful_shutdown=_ABORT_SECONDS, ssl_certfile=settings.ssl_certfile,
            ssl_keyfile=settings.ssl_keyfile,
        )  # fmt: skip
        super().__init__(config)
        logging.getLogger("uvicorn.error").addFilter(_milder)
        self.serving, self.sock = serving, sock
        self.signal = 0
        """Number of the last signal."""
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # None before it listens

    @property
    def url(self) -> str:
        """Address of the server for a browser."""
        host, port = self.sock.getsockname()[:2]
        scheme = "http" if self.serving.settings.ssl_certfile is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and print the address."""
        await super().startup(sockets=sockets)
        seconds = self.serving.settings.send_buffer_seconds
        self._tasks.append(asyncio.create_task(watch_connections(self.server_state.connections, seconds)))
        self._loop = asyncio.get_running_loop()
        print(f"{self.url} (docs: {self.url}/docs)", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and Ctrl-C; Python calls this in the main thread, between two operations of the event loop."""
        first, self.signal = not self.signal, sig
        if first and self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_drain)
        else:
            self.should_exit, self.force_exit = True, not first

    def _begin_drain(self) -> None:
        self._tasks.append(asyncio.create_task(self._drain()))

    async def _drain(self) -> None:
        """Wait for the end of running requests and sessions as long as they may take, and end the server."""
        seconds = self.serving.settings.drain_seconds
        self.serving.drain()
        if not self.serving.idle:
            logger.info("%s: running answers may finish within %g s; again to end at once",
                        signal.Signals(self.signal).name, seconds)  # fmt: skip
        end = asyncio.get_running_loop().time() + seconds
        while not self.serving.idle and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(_POLL_SECONDS)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close all connections."""
        self.serving.stop()
        if self.force_exit:
            logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # each cancelled task would log its stack
        await super().shutdown(sockets=sockets)
        for task in self._tasks:
            task.cancel()
        sys.stdout.flush()
