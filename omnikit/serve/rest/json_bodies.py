"""JSON bodies of REST requests, decoded quickly even if they hold much audio."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from omnikit.serve import long_json


class JsonRequest(Request):
    """A request whose JSON body is decoded by `omnikit.serve.long_json`."""

    async def json(self) -> Any:
        """Return the value of the body.

        Raises:
            ValueError: no JSON.
            HTTPException: it is too long even without its audio.
        """
        body = await self.body()
        try:
            return long_json.loads(body.decode(json.detect_encoding(body)))
        except long_json.TooLong as error:
            raise HTTPException(413, f"the body is {error}") from None


class JsonRoute(APIRoute):
    """A route whose function gets a `JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return answer
