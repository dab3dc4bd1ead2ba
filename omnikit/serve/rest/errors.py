"""Bad input of REST requests as refusals, whose bodies have OpenAI's form."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from omnikit.errors import one_line
from omnikit.generate import BadQuestion
from omnikit.serve.refusals import Refusal
from omnikit.serve.rest.response_bodies import Body

Fields = TypeVar("Fields", bound=BaseModel)

logger = logging.getLogger(__name__)
CLIENT_GONE = 499
"""Status that the log shows for a request whose client left before the answer; nobody receives it."""
LONGEST = 1000
"""Maximum number of characters of an error's message; messages quote what clients send."""
REFUSED = (Refusal, RequestValidationError, BadQuestion)
"""Exceptions for a client's mistakes, which `refusal_for` converts."""
_SOURCES = ("body", "query")  # FastAPI's names of the places of a value
_HEAD = 300  # characters of a longer message before its gap; what is wrong stands behind what is quoted
_GAP = " ... "


class ErrorDetail(Body):
    """The description of an error."""

    message: str
    type: str
    code: str | None
    param: str | None


class ErrorBody(Body):
    """The JSON body of a response that reports an error."""

    error: ErrorDetail


def bad_input(error: object, param: str | None = None, code: str | None = None) -> Refusal:
    """Return the refusal of a request for its user's mistake, with a message of one line."""
    words = one_line(error, None)
    if len(words) > LONGEST:
        words = words[:_HEAD] + _GAP + words[_HEAD + len(_GAP) - LONGEST :]
    return Refusal(400, words, param=param, code=code)


@contextmanager
def blames(param: str) -> Iterator[None]:
    """Context manager that turns a `ValueError` about a user's input into a refusal that names the parameter."""
    try:
        yield
    except ValueError as error:
        raise bad_input(error, param) from None


def refusal_for(error: Exception) -> Refusal | None:
    """Return the refusal by which an exception in `REFUSED` is reported to the client; None for all others."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RequestValidationError):
        return invalid(error.errors())
    return bad_input(error) if isinstance(error, BadQuestion) else None


def validated(model: type[Fields], values: Any) -> Fields:
    """Validate the fields of a request that FastAPI has not validated, and return them as an object of a model.

    Raises:
        Refusal: a field is missing or has a value that it cannot have.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise invalid(error.errors()) from None


def invalid(errors: Sequence[Any]) -> Refusal:
    """Return the refusal for values of a body that pydantic did not accept.

    For a value that may have several types, pydantic reports an error for each; the one that lies deepest in the body
    is about the type that was meant.
    """
    found = max(errors, key=lambda error: len(error["loc"]))
    if found["type"] == "json_invalid":
        why = found.get("ctx", {}).get("error", found["msg"])
        return bad_input(f"body: not valid JSON ({why})", code="invalid_json")
    names = [str(name) for name in found["loc"] if name not in _SOURCES and not _is_type(name)]
    place = ".".join(names)[:200]
    words = found["msg"].removeprefix("Value error, ")
    return bad_input(f"{place or 'body'}: {words}", place or None)


def _is_type(name: object) -> bool:
    """Return whether an element of pydantic's location names one type of several instead of a key of the body."""
    return isinstance(name, str) and ("[" in name or name == "str")


def late(error: Exception) -> ErrorBody:
    """Return the error body for an exception that ended an answer of which a part has been sent already."""
    known = refusal_for(error)
    if known is None:
        logger.error("an answer failed", exc_info=error)
        known = Refusal(500, "the server could not finish the answer")
    return ErrorBody(error=ErrorDetail(**known.error))
