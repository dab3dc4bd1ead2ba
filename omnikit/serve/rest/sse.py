"""Server-sent events, by which OpenAI's clients receive answers while they are generated."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from omnikit.serve.rest.errors import late

MEDIA_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
"""Last event of a streamed chat completion."""


def event(data: dict[str, Any]) -> bytes:
    """Return a server-sent event whose data is a value as JSON text."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


async def events(data: AsyncGenerator[dict[str, Any], None], last: bytes = b"") -> AsyncGenerator[bytes, None]:
    """Yield the events of some data; an exception becomes a last event with an error, which clients raise.

    Args:
        data: data of the events.
        last: bytes after the last event, unless there was an exception.
    """
    try:
        async for each in data:
            yield event(each)
    except Exception as error:
        yield event(late(error))
    else:
        if last:
            yield last
