"""The server's settings and limits, each a flag of `omnikit serve`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from omnikit.option_ranges import COUNT, POSITIVE, Range

RANGES = {
    "port": Range(0, 65535, whole=True),
    "max_sessions": COUNT,
    "max_sessions_per_client": COUNT,
    "max_requests": COUNT,
    "max_requests_per_client": COUNT,
    "max_waiting": COUNT,
    "wait_seconds": POSITIVE,
    "session_minutes": POSITIVE,
    "idle_seconds": POSITIVE,
    "max_audio_seconds": POSITIVE,
    "max_body_mib": POSITIVE,
    "request_seconds": POSITIVE,
    "drain_seconds": Range(0),
    "interrupt_min_ms": Range(0, 10_000),
    "send_buffer_seconds": POSITIVE,
    "max_items": COUNT,
}
"""Mapping from the name of each setting that is a number to the range of values that it accepts."""
_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the server that do not depend on the systems it serves.

    Raises:
        ValueError: a value outside its range, or a token that no client could send.
    """

    host: str = "127.0.0.1"
    """Address that the server listens on."""
    port: int = 8000
    """Port that the server listens on; 0 = a free one."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that clients must send; None = none."""
    insecure: bool = False
    """Whether a host other than loopback may be served without a token."""
    ssl_certfile: str | None = None
    """Certificate file for https."""
    ssl_keyfile: str | None = None
    """Private key file for https."""
    allowed_hosts: tuple[str, ...] = ()
    """Names accepted in the Host header besides loopback and `host`; behind a proxy, its name."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of other pages that may call the server from a browser."""
    max_sessions: int = 64
    """Maximum number of open Realtime sessions."""
    max_sessions_per_client: int = 16
    """Maximum number of open Realtime sessions of one client address."""
    max_requests: int = 128
    """Maximum number of HTTP requests that are answered at the same time, those for files of the page included."""
    max_requests_per_client: int = 64
    """Maximum number of HTTP requests of one client address that are answered at the same time."""
    max_waiting: int = 64
    """Maximum number of questions that wait for a free slot of one system."""
    wait_seconds: float = 30.0
    """Maximum time in seconds for which a question waits for a free slot."""
    session_minutes: float = 60.0
    """Length of a Realtime session in minutes after which it is closed."""
    idle_seconds: float = 300.0
    """Seconds without an event of the client after which a Realtime session is closed."""
    max_audio_seconds: float = 30.0
    """Maximum length in seconds of one spoken question; that of a system's encoder if it is less, see `limits_of`."""
    max_body_mib: float = 25.0
    """Maximum size in MiB of a request's body and of one WebSocket frame."""
    request_seconds: float = 120.0
    """Maximum time in seconds spent on one answer."""
    drain_seconds: float = 30.0
    """Seconds after SIGTERM in which running answers may finish."""
    interrupt_min_ms: float = 400.0
    """Milliseconds of speech over an answer before it counts as an interruption."""
    send_buffer_seconds: float = 30.0
    """Seconds without progress after which a client that does not read its answer is dropped."""
    max_items: int = 512
    """Maximum number of items in the conversation of one Realtime session."""

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            allowed.check(name, getattr(self, name))
        if self.token is not None and not _TOKEN.fullmatch(self.token):  # which the message must not show
            raise ValueError("--token: must be printable ASCII characters without spaces, at least one")

    @property
    def max_body_bytes(self) -> int:
        """Maximum number of bytes of a request's body and of one WebSocket frame."""
        return int(self.max_body_mib * 2**20)
