"""Test the Ray Serve deployment: two replicas answer calls and sessions, and bad arguments are refused."""

from __future__ import annotations

import json
import re
import socket
from contextlib import ExitStack

import httpx
import pytest
from websockets.sync.client import connect

ray = pytest.importorskip("ray", reason="needs the extra ray")

from ray import serve  # noqa: E402

from omnikit.serve import ray_app  # noqa: E402
from tests.serve.conftest import QUESTION, wait_for  # noqa: E402

TOKEN = "a-token_of.tests"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"chekpoint": "a"}, "chekpoint: no such argument .choices: allowed_hosts, .* checkpoint"),
        ({"slots": "many"}, "slots=many: must be a whole number"),
        ({"slots": 0}, "--slots 0: must be 1 or more"),
        ({"replicas": 0}, "--replicas 0: must be 1 or more"),
        ({"host": "0.0.0.0"}, "--host 0.0.0.0: anybody who reaches this address"),
        ({"token": "word"}, "token: no such argument"),
        ({"port": 80}, "port: no such argument"),
    ],
)
def test_bad_arguments_are_refused(monkeypatch, args, message):
    monkeypatch.delenv("OMNIKIT_TOKEN", raising=False)
    with pytest.raises(ValueError, match=message):
        ray_app.build(args)


@pytest.fixture(scope="module")
def url():
    """Start Ray with two replicas of the shipped system, and return the address of its proxy."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNIKIT_TOKEN", TOKEN)
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        application = ray_app.build({"replicas": "2", "slots": "4", "max_steps": "200"})
        ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(application)
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.mark.long
def test_two_replicas_answer(url, omni):
    assert httpx.get(f"{url}/health").json() == {"status": "ready"}
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/health", headers={"Host": "evil.example"}).status_code == 403
    secret = {"Authorization": f"Bearer {TOKEN}"}
    replicas = set()

    def both() -> bool:
        figures = httpx.get(f"{url}/metrics", headers=secret, timeout=60).text
        replicas.add(re.search(r"^process_start_time_seconds (.*)$", figures, re.MULTILINE)[1])
        return len(replicas) == 2

    wait_for(both, 60)
    wanted = omni.transcribe(QUESTION)
    with httpx.Client(base_url=url, headers=secret, timeout=60) as client:
        for _ in range(4):
            file = {"file": ("sum.wav", QUESTION.read_bytes())}
            found = client.post("/v1/audio/transcriptions", data={"model": "mini"}, files=file)
            assert found.json()["text"] == wanted


@pytest.mark.long
def test_sessions_stay_with_their_replica(url):
    """Several Realtime sessions at once each hold a conversation of two turns; sound arrives in many events."""
    address = url.replace("http", "ws") + "/v1/realtime?model=mini"
    with ExitStack() as stack:
        secret = {"Authorization": f"Bearer {TOKEN}"}
        sockets = [stack.enter_context(connect(address, additional_headers=secret)) for _ in range(4)]
        for _ in range(2):
            for each in sockets:
                content = [{"type": "input_text", "text": "what is two plus two"}]
                item = {"type": "message", "role": "user", "content": content}
                each.send(json.dumps({"type": "conversation.item.create", "item": item}))
                each.send(json.dumps({"type": "response.create"}))
            for each in sockets:
                events = []
                while not events or events[-1]["type"] != "response.done":
                    events.append(json.loads(each.recv(timeout=60)))
                assert events[-1]["response"]["status"] == "completed"
                assert sum(event["type"] == "response.output_audio.delta" for event in events) > 2
