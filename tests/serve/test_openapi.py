"""Send calls that schemathesis makes from the OpenAPI document: no error of the server, and responses as documented.

Bodies of known calls are damaged as well, to show that their schemas exclude it.
`make fuzz` lets it run for minutes, see `tests/serve/fuzzing.py`.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.openapi import from_dict
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from omnikit.api import Omni
from omnikit.generate import BadQuestion
from omnikit.serve.app import create_app
from omnikit.serve.rest import sse
from omnikit.serve.rest.errors import late
from omnikit.serve.serving import Serving
from omnikit.serve.settings import ServerSettings
from tests.serve.conftest import NAME
from tests.serve.fuzzing import rounds
from tests.serve.many_requests import RECORDING, SOUND, event_data, spoken

EXAMPLES = 4
"""Number of calls of each kind and operation in a round."""
PATIENCE = 300.0
"""Seconds after which a call counts as hanging."""
URL = "http://127.0.0.1"
CHECKS = [
    content_type_conformance, response_headers_conformance, response_schema_conformance, status_code_conformance,
]  # fmt: skip
SPOKEN = spoken()
WRITTEN = {"role": "user", "content": "five"}
WRITTEN_EVENTS = {"model": NAME, "messages": [WRITTEN], "stream": True, "stream_options": {"include_usage": True}}
SPOKEN_EVENTS = {
    "model": NAME, "messages": [WRITTEN], "stream": True, "modalities": ["text", "audio"], "audio": {"format": "pcm16"},
}  # fmt: skip
SPEECH_EVENTS = {"model": NAME, "input": "five", "response_format": "pcm", "stream_format": "sse"}


def upload(**fields: str) -> dict[str, Any]:
    """Return the options of a call that sends a recording in a form."""
    return {"data": {"model": NAME, **fields}, "files": {"file": RECORDING}}


USEFUL: dict[str, list[Any]] = {
    "/v1/chat/completions": [
        {"model": NAME, "messages": [WRITTEN]},
        {"model": "gpt-4o", "messages": [SPOKEN], "modalities": ["text", "audio"], "audio": {"format": "pcm16"}},
        {"model": NAME, "messages": [WRITTEN, {"role": "assistant", "content": "six"}, SPOKEN]},
        WRITTEN_EVENTS,
        SPOKEN_EVENTS,
    ],
    "/v1/audio/speech": [
        {"model": NAME, "input": "five"},
        {"model": "tts-1", "input": "five", "voice": {"id": "a"}},
        SPEECH_EVENTS,
    ],
    "/v1/audio/transcriptions": [{"model": NAME, "file": RECORDING}],
    "/chat": [{"audio": SOUND}],
}
"""Bodies that reach the systems, from which fields are put into the random ones."""
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "health": ("/health", {}),
    "models": ("/v1/models", {}),
    "model": ("/v1/models/{model}", {}),
    "written answer": ("/v1/chat/completions", {"json": {"model": NAME, "messages": [WRITTEN]}}),
    "spoken answer": ("/v1/chat/completions", {"json": SPOKEN_EVENTS | {"stream": False}}),
    "written events": ("/v1/chat/completions", {"json": WRITTEN_EVENTS}),
    "spoken events": ("/v1/chat/completions", {"json": SPOKEN_EVENTS}),
    "speech events": ("/v1/audio/speech", {"json": SPEECH_EVENTS}),
    "transcript": ("/v1/audio/transcriptions", upload()),
    "verbose transcript": ("/v1/audio/transcriptions", upload(response_format="verbose_json")),
    "transcript events": ("/v1/audio/transcriptions", upload(stream="true")),
    "error": ("/v1/audio/speech", {"json": {}}),
}
"""Path and options of calls that are answered by JSON, of each kind."""
OPTIONAL = {
    "message.audio", "delta.role", "delta.content", "delta.refusal", "delta.audio", "audio.id", "audio.data",
    "audio.transcript", "audio.expires_at", ".usage",
}  # fmt: skip
"""Fields that are not in all chunks or messages, as `damaged` names them."""


@pytest.fixture(scope="module")
def short(omni) -> Iterator[Omni]:
    """Return the shipped system with short answers."""
    system = Omni(omni.model, decoding=replace(omni.decoding, max_steps=12), engine=omni.decoder.engine)
    yield system
    system.close()


@pytest.fixture(scope="module")
def app(short) -> FastAPI:
    return create_app(Serving(ServerSettings(), {NAME: short}))


def examples(strategy: st.SearchStrategy[Case], send: Callable[[Case, random.Random], None], seed: int) -> None:
    """Call a function with examples of a strategy and a random generator for each, the same for the same seed."""

    @seeded(seed)
    @settings(
        max_examples=EXAMPLES, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy, st.randoms())
    def run(case: Case, draw: random.Random) -> None:
        send(case, draw)

    run()


def modes(operation: APIOperation) -> list[GenerationMode]:
    """Return the kinds of calls: as documented, and, of an operation with a body, otherwise."""
    return [mode for mode in GenerationMode if mode is GenerationMode.POSITIVE or operation.body]


def improved(case: Case, draw: random.Random) -> Case:
    """Give a call, two times in three, some fields of a body that reaches the systems."""
    useful = USEFUL.get(case.path)
    if useful and isinstance(case.body, dict) and (share := draw.choice([0, 0.7, 1])):
        known = draw.choice(useful)
        case.body = {**case.body, **{name: value for name, value in known.items() if draw.random() < share}}
    return case


def test_calls_made_from_the_openapi_document(app, short, caplog):
    schema, statuses = from_dict(app.openapi()), Counter()

    def send(case: Case, draw: random.Random) -> None:
        response = improved(case, draw).call(URL, app=app, timeout=PATIENCE)
        statuses[case.path, response.status_code] += 1
        assert response.status_code < 500, case.as_curl_command()[:2000]
        case.validate_response(response, CHECKS)

    for draw in rounds(8.0):
        for found in schema.get_all_operations():
            operation = found.ok()
            for mode in modes(operation):
                examples(operation.as_strategy(mode), send, draw.getrandbits(32))
    print(f"{statuses.total()} calls:", *(f"{count} of {path}: {status}" for (path, status), count in statuses.items()))
    for path in USEFUL:
        assert statuses[path, 200] and statuses[path, 400]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert short.decoder.load == (0, 0)


def damaged(value: Any, owner: str = "") -> Iterator[tuple[str, Any]]:
    """Yield copies of a JSON value in which a field of an object has a wrong type, or is missing.

    Each comes with the names of the object, empty for the whole, and of the field; that of a wrong type has a `!`.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            key = f"{owner}.{name}"
            yield f"{key}!", {**value, name: [0.5]}
            yield key, {other: value[other] for other in value if other != name}
            for where, changed in damaged(inner, name):
                yield where, {**value, name: changed}
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            for where, changed in damaged(inner, owner):
                yield where, [*value[:index], changed, *value[index + 1 :]]


@pytest.mark.parametrize("name", CALLS)
def test_the_schemas_exclude_damaged_bodies(name, app):
    path, options = CALLS[name]
    operation = from_dict(app.openapi())[path]["POST" if options else "GET"]
    with TestClient(app, base_url=URL) as client:
        response = client.request(operation.method, path.format(model=NAME), **options)
    streams = response.headers["content-type"].startswith(sse.MEDIA_TYPE)

    def accepted(body: Any) -> bool:
        content = json.dumps(body)
        kinds = {"content-type": response.headers["content-type"]}
        found = httpx.Response(
            response.status_code, headers=kinds, content=f"data: {content}\n\n" if streams else content,
            request=response.request,
        )  # fmt: skip
        found.elapsed = timedelta()
        return operation.is_valid_response(found)

    assert response.status_code == (400 if name == "error" else 200)
    operation.validate_response(response)
    bodies = event_data(response.text) if streams else [response.json()]
    if streams:
        assert not any("error" in body for body in bodies)
        bodies += event_data(sse.event(late(BadQuestion("too long"))).decode())
    assert all(map(accepted, bodies))
    passed = {where for body in bodies for where, changed in damaged(body) if accepted(changed)}
    assert passed <= OPTIONAL
