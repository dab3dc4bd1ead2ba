"""The base class of JSON response bodies, from whose fields the OpenAPI document gets their schemas."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

BINARY = {"schema": {"type": "string", "format": "binary"}}
"""OpenAPI schema of a response body that is a file, such as audio."""


def _extensible(schema: dict[str, Any]) -> None:
    schema.pop("additionalProperties", None)


class Body(BaseModel):
    """A JSON body of a response, or an object in one. Fields with a default are sent only if they were set.

    A field of another name is an error here, but the OpenAPI document allows it, so that clients that are generated
    from the document accept the fields of later versions. Errors do not quote values, since they are logged.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, json_schema_extra=_extensible)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of the body that were set, as values that JSON can hold."""
        return self.model_dump(exclude_unset=True)
