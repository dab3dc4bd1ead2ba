"""`GET /v1/models`: the names of the systems that the server answers with."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import APIRouter

from omnikit.serve.rest.answers import Served
from omnikit.serve.rest.response_bodies import Body
from omnikit.serve.serving import UnknownModel

router = APIRouter()
_STARTED = int(time.time())


class Model(Body):
    """The body of `/v1/models/{model}`: the name of a served system."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Body):
    """The body of `/v1/models`: the names of the served systems."""

    object: Literal["list"]
    data: list[Model]


@router.get("/models")
async def models(serving: Served) -> ModelList:
    """List the systems that are served."""
    return ModelList(object="list", data=[_model(name) for name in serving.systems])


@router.get("/models/{model:path}")
async def model(model: str, serving: Served) -> Model:
    """Describe a system that is served."""
    if model not in serving.systems:
        raise UnknownModel(model, list(serving.systems))
    return _model(model)


def _model(name: str) -> Model:
    return Model(id=name, object="model", created=_STARTED, owned_by="omnikit")
