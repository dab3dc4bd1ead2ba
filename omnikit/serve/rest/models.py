"""`GET /v1/models`: the names of the systems that the server answers with."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from omnikit.serve.rest.answers import Served
from omnikit.serve.serving import UnknownModel

router = APIRouter()
_STARTED = int(time.time())


@router.get("/models")
async def models(serving: Served) -> dict[str, Any]:
    """List the systems that are served."""
    return {"object": "list", "data": [_model(name) for name in serving.systems]}


@router.get("/models/{model:path}")
async def model(model: str, serving: Served) -> dict[str, Any]:
    """Describe a system that is served."""
    if model not in serving.systems:
        raise UnknownModel(model, list(serving.systems))
    return _model(model)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": "omnikit"}
