"""Test the application around its calls: errors in OpenAI's form, limits of requests, and what draining refuses."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic

import httpx
import pytest
from fastapi import Body, FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.testclient import TestClient
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from omnikit.generate import BadQuestion, QueueFull
from omnikit.serve.refusals import Refusal
from omnikit.serve.serving import Serving
from omnikit.serve.settings import ServerSettings
from tests.serve.conftest import NAME, QUESTION, wait_for

ERRORS = {
    "queue": QueueFull("64 questions are waiting already"),
    "question": BadQuestion("too long"),
    "refusal": Refusal(404, "no such voice", code="no_voice", param="voice"),
    "bug": RuntimeError("a secret of the program"),
}


def routes(app: FastAPI) -> None:
    """Add calls that read, wait, fail and stream."""

    @app.get("/fail/{name}")
    async def fail(name: str) -> None:
        raise ERRORS[name]

    @app.get("/typed")
    async def typed(number: int) -> int:
        return number

    @app.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    @app.post("/json")
    async def json(body: dict = Body()) -> int:  # noqa: B008
        return len(body)

    @app.get("/wait/{seconds}")
    async def wait(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "waited"

    @app.get("/stream/{seconds}")
    async def stream(seconds: float) -> StreamingResponse:
        async def parts():
            end = monotonic() + seconds
            while monotonic() < end:
                yield b"x" * 50_000
                await asyncio.sleep(0.01)

        return StreamingResponse(parts())


@pytest.fixture
def app_client(client):
    """Return a function that makes a client of an application with `routes`; its arguments are settings."""

    def make(**settings) -> TestClient:
        served = client(**settings)
        found = served.app.router.routes
        before = len(found)
        routes(served.app)
        found[:] = found[before:] + found[:before]
        return served

    return make


def error(response) -> dict:
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def test_errors_have_the_form_of_openai(app_client):
    served = app_client()
    full = served.get("/fail/queue")
    assert (full.status_code, error(full)["code"]) == (503, "queue_full")
    assert int(full.headers["retry-after"]) > 0
    assert error(served.get("/fail/question"))["message"] == "too long"
    refused = served.get("/fail/refusal")
    assert refused.status_code == 404
    assert error(refused) == {
        "message": "no such voice", "type": "invalid_request_error", "param": "voice", "code": "no_voice",
    }  # fmt: skip
    wrong = served.get("/typed", params={"number": "x"})
    assert (wrong.status_code, error(wrong)["param"]) == (400, "number")
    nothing = served.post("/nothing")
    assert (nothing.status_code, error(nothing)["message"]) == (404, "Not Found")
    bug = served.get("/fail/bug")
    assert (bug.status_code, error(bug)["type"]) == (500, "server_error")
    assert "secret" not in bug.text
    figures = served.get("/metrics").text
    assert 'omnikit_refusals_total{reason="queue"} 1.0' in figures
    assert 'omnikit_errors_total{error="RuntimeError",kind="request"} 1.0' in figures
    assert 'omnikit_http_responses_total{status="503"} 1.0' in figures


def test_the_calls_are_described(client):
    served = client()
    described = served.get("/openapi.json").json()
    assert {"/health", "/metrics"} <= set(described["paths"])
    page = served.get("/docs").text
    assert all(f"{path}</code>" in page for path in described["paths"])


# limits


def parts(number: int, size: int) -> Iterator[bytes]:
    for _ in range(number):
        yield b"x" * size


def test_bodies_are_bounded(app_client):
    served = app_client(max_body_mib=0.01)
    most = served.app.state.serving.settings.max_body_bytes
    assert served.post("/size", content=b"x" * most).json() == most
    assert served.post("/size", content=parts(10, 1000)).json() == 10_000
    for path in ("/size", "/json", "/nothing"):
        announced = served.post(path, content=b"x" * (most + 1))
        assert (announced.status_code, error(announced)["code"]) == (413, "body_too_large")
        assert announced.headers["connection"] == "close"
    for path in ("/size", "/json"):  # a chunked body has no header with its size
        streamed = served.post(path, content=parts(1000, 1000), headers={"content-type": "application/json"})
        assert (streamed.status_code, error(streamed)["type"]) == (413, "invalid_request_error")


def test_a_body_without_end_is_not_read_on(server):
    """A call that reads no body, or too large a one, closes the connection, so that nobody can send for ever."""
    started = server(add=routes, max_body_mib=0.1)
    for path, status in (("/size", b"413"), ("/nothing", b"404")):
        with socket.create_connection(started.sock.getsockname(), timeout=20) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
            client.sendall(head.encode())
            got, sent = [], threading.Event()
            reader = threading.Thread(target=lambda got=got: got.append(client.recv(1000)))
            reader.start()
            with pytest.raises(OSError):
                for _ in range(100_000):
                    client.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            reader.join(20)
            assert status in got[0], sent


def test_requests_are_bounded_in_time(app_client):
    served = app_client(request_seconds=0.2)
    late = served.get("/wait/60")
    assert (late.status_code, error(late)["message"]) == (503, "no answer within 0.4 s")
    assert "retry-after" in late.headers
    assert served.get("/wait/0").json() == "waited"
    began = monotonic()
    served.get("/stream/60")
    assert monotonic() - began < 20
    assert not served.app.state.serving.running
    assert 'omnikit_refusals_total{reason="time"} 2.0' in served.get("/metrics").text


def test_a_body_that_does_not_arrive_is_refused(server):
    started = server(add=routes, request_seconds=0.3)
    with socket.create_connection(started.sock.getsockname(), timeout=20) as client:
        client.sendall(b"POST /size HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nxxx")
        assert client.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_client_that_does_not_read_is_cut_off(server, monkeypatch):
    """A client that stops reading, or sends no request, loses its connection; others are served meanwhile."""
    monkeypatch.setattr("omnikit.serve.connections.REQUEST_SECONDS", 1.5)
    started = server(add=routes, send_buffer_seconds=0.6)
    address = started.sock.getsockname()
    stuck, silent, head = (socket.create_connection(address, timeout=20) for _ in range(3))
    stuck.sendall(b"GET /stream/600 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    head.sendall(b"GET /stream/600 HTTP/1.1\r\nHost: ")
    wait_for(lambda: len(started.server_state.connections) == 3)
    assert httpx.get(f"{started.url}/typed?number=3").json() == 3
    wait_for(lambda: not started.serving.running and not started.server_state.connections)
    for each in (silent, head):
        with suppress(ConnectionResetError):
            assert each.recv(1) == b""
    for each in (stuck, silent, head):
        each.close()


def test_a_client_that_leaves_ends_its_response(server):
    started = server(add=routes)
    with httpx.stream("GET", f"{started.url}/stream/600") as response:
        parts = response.iter_bytes()  # a reference, since httpx closes the response with the iterator
        next(parts)
        assert len(started.serving.running) == 1
    wait_for(lambda: not started.serving.running)


def test_requests_are_bounded_in_all_and_per_client(app_client):
    """Refused requests are not read, and answers of others go on; a place is free as soon as its request is over."""
    served = app_client(max_requests=3, max_requests_per_client=2)
    serving: Serving = served.app.state.serving

    def statuses(number: int, client: str) -> list[int]:
        """Return the statuses of some calls of one address at the same time."""
        transport = httpx.ASGITransport(served.app, client=(client, 1))

        async def call() -> list[int]:
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                got = await asyncio.gather(*(client.get("/wait/0.2") for _ in range(number)))
            for each in got:
                if each.status_code != 200:
                    assert error(each)["code"] == "too_many_requests" and int(each.headers["retry-after"]) > 0
                    assert each.headers["connection"] == "close"
            return sorted(each.status_code for each in got)

        return asyncio.run(call())

    assert statuses(4, "10.0.0.1") == [200, 200, 429, 429]
    with serving.admit_request("10.0.0.2", None), serving.admit_request("10.0.0.3", None):
        assert statuses(3, "10.0.0.1") == [200, 503, 503]
        assert served.get("/health").status_code == served.get("/metrics").status_code == 200
    assert serving.idle and not serving._open_requests._open
    assert 'omnikit_refusals_total{reason="requests"} 4.0' in served.get("/metrics").text


# draining


def test_a_draining_server_refuses_what_is_new(app_client):
    served = app_client()
    serving: Serving = served.app.state.serving
    assert served.get("/health").json() == {"status": "ready"}
    served.portal.call(serving.drain)
    health = served.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "draining"})
    assert served.get("/metrics").status_code == 200
    for path in ("/typed?number=1", "/", "/docs"):
        refused = served.get(path)
        assert (refused.status_code, error(refused)["code"]) == (503, "server_draining")
        assert int(refused.headers["retry-after"]) > 0
    with pytest.raises(Refusal, match="about to end"), serving.admit_session("a"):
        pass


def test_running_requests_finish_while_the_server_drains(server):
    started = server(add=routes)
    found = []
    asked = threading.Thread(target=lambda: found.append(httpx.get(f"{started.url}/wait/1", timeout=20)))
    asked.start()
    wait_for(lambda: started.serving.running)
    started.handle_exit(15, None)
    wait_for(lambda: started.serving.draining)
    assert httpx.get(f"{started.url}/typed?number=1").status_code == 503
    asked.join()
    assert found[0].json() == "waited"
    wait_for(lambda: started.should_exit)
    assert not started.force_exit


def test_requests_that_do_not_finish_are_ended_at_the_limit(server):
    started = server(add=routes, drain_seconds=0.3)
    found = []
    asked = threading.Thread(target=lambda: found.append(httpx.get(f"{started.url}/wait/60", timeout=20)))
    asked.start()
    wait_for(lambda: started.serving.running)
    started.handle_exit(15, None)
    asked.join(20)
    assert found[0].status_code == 503
    assert error(found[0])["code"] == "server_draining"


def test_sessions_are_closed_after_their_answer_while_the_server_drains(server):
    """An idle session is closed at once, one with an answer after it, and a new one is refused by an event."""
    started = server()
    address = started.url.replace("http", "ws") + "/v1/realtime"
    asked = {"type": "response.create", "response": {"input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "what is two plus two"}]},
    ]}}  # fmt: skip
    with connect(address) as idle, connect(address) as answered:
        answered.send(json.dumps(asked))
        while event(answered)["type"] != "response.output_audio.delta":
            pass
        started.handle_exit(15, None)
        wait_for(lambda: started.serving.draining)
        with connect(address) as late:
            assert event(late)["error"]["code"] == "server_draining"
        kinds = []
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                kinds.append(event(answered))
        assert kinds[-1]["response"]["status"] == "completed"
        assert closed.value.rcvd.code == 1001
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                assert event(idle)["type"] == "session.created"
        assert closed.value.rcvd.code == 1001
    wait_for(lambda: started.should_exit)
    assert started.serving.idle


def event(socket: ClientConnection) -> dict:
    return json.loads(socket.recv(timeout=60))


# systems and sessions


def test_names_of_models(serving, omni):
    one = serving()
    for name in ("mini", None, "gpt-realtime", "gpt-4o-audio-preview", "tts-1", "whisper-1", "o3"):
        assert one.system(name) is omni
        assert one.name_of(name) == "mini"
    for name in ("", "..", "/etc/passwd", "mini2", "GPT-4", "my-gpt-4", "gpt 4", "x" * 10_000):
        with pytest.raises(Refusal, match=r"not served \(choices: mini\)") as refused:
            one.system(name)
        assert refused.value.status == 404 and len(refused.value.message) < 300
    two = Serving(ServerSettings(), {"first": omni, "second": omni})
    assert (two.name_of(None), two.name_of("second")) == ("first", "second")
    with pytest.raises(Refusal, match="choices: first, second"):
        two.system("gpt-realtime")
    with pytest.raises(ValueError, match="none is given"):
        Serving(ServerSettings(), {})


def test_a_question_is_at_most_as_long_as_the_encoder_takes(client, omni, monkeypatch):
    """Check that REST and Realtime refuse before it is encoded what the encoder would refuse, and name its limit."""
    monkeypatch.setattr(omni.model.encoder, "max_seconds", 0.5, raising=False)
    monkeypatch.setattr(omni.decoder, "submit", lambda *_, **__: pytest.fail("submitted"))
    served = client()
    got = served.post("/v1/audio/transcriptions", data={"model": NAME}, files={"file": QUESTION.read_bytes()})
    assert (got.status_code, error(got)["param"]) == (400, "file") and "0.5 s" in error(got)["message"]
    with served.websocket_connect("ws://127.0.0.1/v1/realtime") as session:
        session.send_json({"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}})
        session.send_json({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(48_000)).decode()})
        session.send_json({"type": "input_audio_buffer.commit"})
        refused = [session.receive_json() for _ in range(3)][-1]
        session.close()
        wait_for(lambda: not served.app.state.serving.sessions)  # the test client would cancel what ends the session
    assert refused["error"]["code"] == "audio_too_long" and "0.5 seconds" in refused["error"]["message"]


def test_sessions_are_bounded_in_all_and_per_client(serving):
    found = serving(max_sessions=3, max_sessions_per_client=2)
    with found.admit_session("a"), found.admit_session("a"):
        with pytest.raises(Refusal, match="2 sessions of this client") as refused, found.admit_session("a"):
            pass
        assert refused.value.status == 429 and refused.value.headers["Retry-After"]
        with found.admit_session("b"):
            with pytest.raises(Refusal, match="3 sessions are open") as refused, found.admit_session("c"):
                pass
            assert refused.value.status == 503 and refused.value.headers["Retry-After"]
            assert (found.sessions, found.idle) == (3, False)
    assert (found.sessions, found.idle, len(found._open_sessions._open)) == (0, True, 0)


def test_sessions_are_told_that_the_server_drains(serving):
    found = serving()

    async def run() -> list[int]:
        waiting = [asyncio.create_task(found.until_draining()) for _ in range(3)]
        left = asyncio.create_task(found.until_draining())
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        found.drain()
        found.drain()
        await asyncio.gather(*waiting)
        await found.until_draining()
        return len(found._waiters)

    assert asyncio.run(run()) == 0
