"""Who may call the server: Host and Origin against foreign pages, and the bearer token, for HTTP and WebSocket alike.

A page of another site can make a browser call a server on the same machine. It cannot forge the headers Host and
Origin: a name that its owner points to 127.0.0.1 (DNS rebinding) stands in Host, its own address in Origin.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnikit.serve.metrics import Metrics
from omnikit.serve.refusals import Refusal
from omnikit.serve.settings import ServerSettings

KEY_PROTOCOL = "openai-insecure-api-key."
"""Beginning of the WebSocket subprotocol by which browsers send a token, since they cannot set headers."""
ANY = "*"
"""Entry of the allowed hosts or origins that allows all."""
HEALTH = "/health"
"""Path that is answered without a token, and until the server ends."""


SAFE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "media-src 'self' data: blob:; worker-src 'self' blob:; "
        "object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
    ),
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers by which a browser keeps the page from loading anything from elsewhere, and from being framed."""


def is_loopback(host: str) -> bool:
    """Return whether an address or a name of the machine can be reached from this machine only.

    Raises:
        ValueError: the name has no address.
    """
    if not host:  # all interfaces
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ValueError(f"--host {host}: this machine knows no such address or name") from None
    return all(ipaddress.ip_address(address[0].partition("%")[0]).is_loopback for *_, address in found)


def check_exposure(settings: ServerSettings) -> None:
    """Refuse to serve other machines without a token, unless `insecure` says so.

    Raises:
        ValueError: the host is not loopback, and there is neither a token nor `insecure`.
    """
    if not is_loopback(settings.host) and settings.token is None and not settings.insecure:
        raise ValueError(
            f"--host {settings.host}: anybody who reaches this address could use the server; set a token in the "
            "environment variable OMNIKIT_TOKEN, or pass --insecure"
        )


def client_of(scope: Scope) -> str:
    """Return the address of the client, without its port; empty if it has none, as on a Unix socket."""
    return (scope.get("client") or ("",))[0]


async def refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, or the handshake of a WebSocket, with an error."""
    socketed = scope["type"] == "websocket"
    if socketed and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.message[:120]})
        return
    headers = {"content-type": "application/json", "content-length": str(len(refusal.body)), **refusal.headers}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    kind = "websocket.http.response" if socketed else "http.response"
    await send({"type": f"{kind}.start", "status": refusal.status, "headers": raw})
    await send({"type": f"{kind}.body", "body": refusal.body, "more_body": False})


def allowed_origins(settings: ServerSettings) -> list[str]:
    """Return the origins that may call the server besides its own, as browsers write them."""
    return [origin.lower().rstrip("/") for origin in settings.allowed_origins]


class SameSite:
    """A middleware that refuses calls of foreign pages by the headers Host and Origin.

    They are checked on loopback, and wherever no token is wanted. A page that lacks the token cannot use a server that
    wants one, so behind a token on another address they are not.

    Args:
        app: the application.
        settings: settings of the server.
        metrics: figures in which refusals are counted.
    """

    def __init__(self, app: ASGIApp, *, settings: ServerSettings, metrics: Metrics):
        self.app, self.settings, self.metrics = app, settings, metrics
        self.loopback = is_loopback(settings.host)
        self.checks = self.loopback or settings.token is None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.checks and scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            if not self._host_fits(host):
                self.metrics.refused("host")
                words = f"Host {host[:100]!r} is not this server's; --allowed_hosts names further ones"
                return await refuse(Refusal(403, words, code="host_not_allowed"), scope, receive, send)
            if origin is not None and not self._origin_fits(origin, host, scope["scheme"]):
                self.metrics.refused("origin")
                words = f"Origin {origin[:100]!r} may not call this server; --allowed_origins names those that may"
                return await refuse(Refusal(403, words, code="origin_not_allowed"), scope, receive, send)
        await self.app(scope, receive, send)

    def _host_fits(self, header: str) -> bool:
        """Return whether a Host header names this server: no name that someone else may own."""
        allowed = self.settings.allowed_hosts
        try:
            name = (urlsplit(f"//{header}").hostname or "").removesuffix(".")
        except ValueError:
            return False
        if ANY in allowed or name in {"localhost", self.settings.host.lower(), *(each.lower() for each in allowed)}:
            return bool(name)
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self.loopback  # an address has no owner who could point it elsewhere

    def _origin_fits(self, origin: str, host: str, scheme: str) -> bool:
        """Return whether an Origin is that of the server's own page, or one of those allowed."""
        own = f"{'https' if scheme in ('https', 'wss') else 'http'}://{host}"
        allowed = allowed_origins(self.settings)
        return ANY in allowed or origin.lower() in {own.lower(), *allowed}


class BearerToken:
    """A middleware that wants the bearer token for everything but `/health` and the files of the page.

    Browsers send it as the WebSocket subprotocol `openai-insecure-api-key.<token>`. It is compared in constant time.

    Args:
        app: the application.
        token: the token; None = none is wanted.
        free: paths that are read without a token.
        metrics: figures in which refusals are counted.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, free: Collection[str], metrics: Metrics):
        self.app, self.free, self.metrics = app, frozenset(free), metrics
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._token is None or scope["type"] not in ("http", "websocket") or self._is_free(scope):
            return await self.app(scope, receive, send)
        given = _given(scope)
        if any(hmac.compare_digest(each, self._token) for each in given):
            return await self.app(scope, receive, send)
        self.metrics.refused("token")
        words = "the token is wrong" if given else "a token is wanted: Authorization: Bearer TOKEN"
        refusal = Refusal(401, words, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await refuse(refusal, scope, receive, send)

    def _is_free(self, scope: Scope) -> bool:
        return scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] in self.free


def _given(scope: Scope) -> list[bytes]:
    """Return the tokens that a client sent."""
    found = []
    for value in Headers(scope=scope).getlist("authorization"):
        kind, _, token = value.partition(" ")
        if kind.lower() == "bearer" and token.strip():
            found.append(token.strip().encode())
    for name in scope.get("subprotocols", ()):
        if name.startswith(KEY_PROTOCOL):
            found.append(name.removeprefix(KEY_PROTOCOL).encode())
    return found


class SafeHeaders:
    """A middleware that adds `SAFE_HEADERS` to all responses.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, add if scope["type"] == "http" else send)
