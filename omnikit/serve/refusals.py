"""Refusals of requests, in the form in which OpenAI's clients expect errors: `{"error": {message, type, param, code}}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

RETRY_SECONDS = 2
"""Seconds after which a client that was refused for lack of room may try again (`Retry-After`)."""
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """Exception that answers a request with an error.

    Args:
        status: HTTP status.
        message: sentence for the client's user.
        code: name of the reason, such as `model_not_found`.
        param: field of the request that is wrong, such as `voice`.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def error(self) -> dict[str, Any]:
        """Error object in OpenAI's form, for bodies of responses and for events of the Realtime protocol."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}

    @property
    def body(self) -> bytes:
        """Body of the response: the error object as JSON text."""
        return json.dumps({"error": self.error}).encode()


def busy(message: str, code: str = "server_busy", seconds: int = RETRY_SECONDS) -> Refusal:
    """Return the refusal of a request that the server has no room for now: 503 with `Retry-After`."""
    return Refusal(503, message, code=code, headers={"Retry-After": str(seconds)})


def too_many(message: str, code: str) -> Refusal:
    """Return the refusal of a client that asks for more at the same time than one may: 429 with `Retry-After`."""
    return Refusal(429, message, code=code, headers={"Retry-After": str(RETRY_SECONDS)})


def internal_error() -> Refusal:
    """Return the refusal of a request at which the server failed; its message tells nothing of the program."""
    return Refusal(500, "an error of the server; its log has the details", code="internal_error")
