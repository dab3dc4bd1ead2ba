"""Send calls that schemathesis makes from the OpenAPI document: no error of the server, and responses as documented.

`make fuzz` lets it run for minutes, see `tests/serve/fuzzing.py`.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
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

from omnikit.api import Omni
from omnikit.serve.app import create_app
from omnikit.serve.serving import Serving
from omnikit.serve.settings import ServerSettings
from tests.serve.conftest import NAME
from tests.serve.fuzzing import rounds
from tests.serve.many_requests import RECORDING, SOUND, spoken

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
USEFUL: dict[str, list[Any]] = {
    "/v1/chat/completions": [
        {"model": NAME, "messages": [WRITTEN]},
        {"model": "gpt-4o", "messages": [SPOKEN], "modalities": ["text", "audio"], "audio": {"format": "pcm16"}},
        {"model": NAME, "messages": [WRITTEN, {"role": "assistant", "content": "six"}, SPOKEN]},
    ],
    "/v1/audio/speech": [{"model": NAME, "input": "five"}, {"model": "tts-1", "input": "five", "voice": {"id": "a"}}],
    "/v1/audio/transcriptions": [{"model": NAME, "file": RECORDING}],
    "/chat": [{"audio": SOUND}],
}
"""Bodies that reach the systems, from which fields are put into the random ones."""


@pytest.fixture(scope="module")
def short(omni) -> Iterator[Omni]:
    """Return the shipped system with short answers."""
    system = Omni(omni.model, decoding=replace(omni.decoding, max_steps=12), engine=omni.decoder.engine)
    yield system
    system.close()


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


def test_calls_made_from_the_openapi_document(short, caplog):
    app = create_app(Serving(ServerSettings(), {NAME: short}))
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
