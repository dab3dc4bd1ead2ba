"""Server-sent events, by which OpenAI's clients receive answers while they are generated."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from omnikit.serve.rest.errors import ErrorBody, late
from omnikit.serve.rest.response_bodies import Body

MEDIA_TYPE = "text/event-stream"
_DONE = "[DONE]"
DONE = f"data: {_DONE}\n\n".encode()
"""Last event of a streamed chat completion."""
_REFERENCE = "#/components/schemas/{model}"


def event(data: Body) -> bytes:
    """Return a server-sent event whose data is a body as JSON text."""
    return b"data: " + json.dumps(data.as_dict(), separators=(",", ":")).encode() + b"\n\n"


async def events(data: AsyncGenerator[Body, None], last: bytes = b"") -> AsyncGenerator[bytes, None]:
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


def described(kinds: Sequence[type[Body]], *, done: bool = False) -> dict[str, Any]:
    """Return the OpenAPI description of a stream of server-sent events, which refers to the schemas of their bodies.

    Its `itemSchema`, the schema of one event, is a word of OpenAPI 3.2 that FastAPI writes into documents of 3.1, too.

    Args:
        kinds: bodies of the events; an error may always come instead.
        done: whether `DONE` is the last event.
    """
    bodies = {"anyOf": [{"$ref": _REFERENCE.format(model=kind.__name__)} for kind in (*kinds, ErrorBody)]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": bodies}
    data = {"anyOf": [{"type": "string", "const": _DONE}, data]} if done else data
    return {"itemSchema": {"type": "object", "required": ["data"], "properties": {"data": data}}}


def schemas(kinds: Sequence[type[Body]]) -> dict[str, Any]:
    """Return the JSON schemas of the bodies of events, and of all that they refer to, by name."""
    return models_json_schema([(kind, "serialization") for kind in kinds], ref_template=_REFERENCE)[1]["$defs"]
