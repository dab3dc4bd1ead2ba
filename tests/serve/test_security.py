"""Test who may call the server: Host, Origin and token, for HTTP and WebSocket alike."""

from __future__ import annotations

import functools
import logging

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket

from omnikit.serve.app import create_app, page_paths
from omnikit.serve.security import SAFE_HEADERS, check_exposure, is_loopback
from omnikit.serve.serving import Serving
from omnikit.serve.settings import ServerSettings

TOKEN = "a-token_of.tests"
SECRET = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def client(omni):
    """Return a function that makes a client of an application with a WebSocket `/socket`; its arguments are settings.
    """

    @functools.cache
    def make(**settings) -> TestClient:
        app = create_app(Serving(ServerSettings(**settings), {"mini": omni}))

        @app.websocket("/socket")
        async def socket(socket: WebSocket) -> None:
            wanted = socket.scope["subprotocols"]
            await socket.accept("realtime" if "realtime" in wanted else None)
            await socket.send_text("hello")
            await socket.close()

        app.router.routes.insert(0, app.router.routes.pop())  # before the page, which takes all paths
        return TestClient(app, base_url="http://127.0.0.1:8000")

    return make


def status_of_socket(client, **options) -> int:
    try:
        with client.websocket_connect("ws://127.0.0.1:8000/socket", **options) as socket:
            return 101 if socket.receive_text() == "hello" else 0
    except WebSocketDenialResponse as refused:
        assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
        return refused.status_code


def statuses(client, **headers) -> set[int]:
    """Return the statuses of calls of the health, the page and a WebSocket with some headers."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    found = {client.get(path, headers=headers).status_code for path in ("/health", "/", "/docs")}
    return found | {200 if (got := status_of_socket(client, headers=headers)) == 101 else got}


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "127.0.0.2", "localhost.", "this.example", "[::1]"],
)
def test_own_names_are_served(client, host):
    assert statuses(client(allowed_hosts=("this.example",)), host=host) == {200}


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "localhost.evil.example", "", "[::1",
     "evil@127.0.0.1.example", "0x7f.1", "2130706433"],
)  # fmt: skip
def test_names_of_others_are_refused(client, host):
    """A page whose owner points its name to 127.0.0.1 (DNS rebinding) sends that name in the header Host."""
    assert statuses(client(), host=host) == {403}


def test_a_host_that_is_not_loopback_is_reached_by_its_addresses(client):
    served = client(host="0.0.0.0", insecure=True)
    assert statuses(served, host="192.168.1.5:8000") == {200}
    assert statuses(served, host="evil.example") == {403}
    assert statuses(client(host="0.0.0.0", insecure=True, allowed_hosts=("*",)), host="any.example") == {200}


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200),
        ("http://friend.example", 200),
        ("HTTP://FRIEND.example", 200),
        ("http://127.0.0.1:8001", 403),
        ("https://127.0.0.1:8000", 403),
        ("http://evil.example", 403),
        ("http://friend.example.evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_pages_of_others_are_refused(client, origin, status):
    served = client(allowed_origins=("http://friend.example",))
    assert statuses(served, host="127.0.0.1:8000", origin=origin) == {status}


def test_pages_of_others_need_the_token(client):
    """Behind a token and off loopback, Host and Origin are not checked, since a page would have to know the token."""
    served = client(host="0.0.0.0", token=TOKEN)
    assert statuses(served, host="any.example", origin="http://evil.example", **SECRET) == {200}
    assert served.get("/docs", headers={"host": "any.example"}).status_code == 401
    loopback = client(token=TOKEN)
    assert statuses(loopback, origin="http://evil.example", **SECRET) == {403}


def test_allowed_pages_may_read_what_they_call(client):
    served = client(allowed_origins=("http://friend.example",), token=TOKEN)
    asked = {"Origin": "http://friend.example", "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    before = served.options("/docs", headers=asked)
    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] == "http://friend.example"
    for headers in ({}, SECRET):
        got = served.get("/docs", headers={"Origin": "http://friend.example", **headers})
        assert got.headers["access-control-allow-origin"] == "http://friend.example"
        assert got.status_code == (200 if headers else 401)


def test_allowed_pages_may_read_why_they_are_refused(client, monkeypatch):
    """Refusals by size and for lack of room, and errors of the server, have the headers of CORS like all responses."""
    friend = {"Origin": "http://friend.example"}
    served = client(allowed_origins=(friend["Origin"],), max_body_mib=0.001)
    got = {413: served.post("/chat", content=bytes(2000), headers=friend)}
    serving = served.app.state.serving
    monkeypatch.setattr(serving, "name_of", lambda name: {}[name])
    quiet = TestClient(served.app, base_url=str(served.base_url), raise_server_exceptions=False)
    body = {"model": "mini", "messages": [{"role": "user", "content": "x"}]}
    got[500] = quiet.post("/v1/chat/completions", json=body, headers=friend)
    monkeypatch.setattr(serving, "draining", True)
    got[503] = served.get("/", headers=friend)
    for status, response in got.items():
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == friend["Origin"]
        assert {name: response.headers[name] for name in SAFE_HEADERS} == SAFE_HEADERS
    assert "retry-after" in got[503].headers["access-control-expose-headers"].lower()
    assert 'omnikit_errors_total{error="KeyError",kind="request"} 1.0' in served.get("/metrics", headers=friend).text


def test_an_allowed_origin_may_be_written_otherwise(client):
    """The check of Origin and the headers of CORS agree about capitals and a slash at the end."""
    got = client(allowed_origins=("https://Friend.example/",)).get("/health", headers={"Origin": "https://friend.example"})
    assert got.status_code == 200
    assert got.headers["access-control-allow-origin"] == "https://friend.example"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN.upper()}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer \xff\xfe".encode("latin-1")},
        {"X-Api-Key": TOKEN},
    ],
)
def test_a_wrong_token_is_refused(client, headers):
    served = client(token=TOKEN)
    for path in ("/docs", "/openapi.json", "/metrics", "/v1/models", "/nothing", "/health/", "/%2f", "/index.html/x"):
        got = served.get(path, headers=headers)
        assert got.status_code == 401, path
        assert got.json()["error"]["code"] == "invalid_api_key"
        assert got.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in got.text
    assert served.get(f"/docs?token={TOKEN}", headers=headers).status_code == 401
    assert status_of_socket(served, headers=headers) == 401
    assert 'omnikit_refusals_total{reason="token"}' in served.get("/metrics", headers=SECRET).text


def test_the_token_is_accepted_in_each_of_its_forms(client):
    served = client(token=TOKEN)
    for headers in (SECRET, {"authorization": f"bearer  {TOKEN}"}):
        assert served.get("/docs", headers=headers).status_code == 200
        assert status_of_socket(served, headers=headers) == 101
    for protocols, status in (
        (["realtime", f"openai-insecure-api-key.{TOKEN}", "openai-agents-sdk.1"], 101),
        ([f"openai-insecure-api-key.{TOKEN}"], 101),
        (["realtime", "openai-insecure-api-key."], 401),
        (["realtime", f"openai-insecure-api-key.{TOKEN}x"], 401),
        (["realtime", TOKEN], 401),
    ):
        assert status_of_socket(served, subprotocols=protocols) == status


def test_page_and_health_are_free_of_the_token(client):
    served = client(token=TOKEN)
    assert page_paths() >= {"/", "/index.html"}
    for path in page_paths() | {"/health"}:
        assert served.get(path).status_code == 200
        assert served.head(path).status_code == 200
        assert served.post(path).status_code == 401
    assert served.get("/../serve/app.py").status_code in (401, 404)


def test_a_page_cannot_load_anything_from_elsewhere(client):
    for path in ("/", "/docs", "/nothing", "/health"):
        headers = client().get(path).headers
        assert {name: headers[name] for name in SAFE_HEADERS} == SAFE_HEADERS
    page = client().get("/docs").text
    assert "<script" not in page and "//" not in page


def test_the_access_log_has_neither_queries_nor_tokens(client, caplog):
    served = client(token=TOKEN)
    with caplog.at_level(logging.DEBUG, "omnikit.serve"):
        served.get(f"/docs?api_key={TOKEN}&x=1", headers=SECRET)
        served.get("/a%0ab%1b")
        status_of_socket(served, subprotocols=["realtime", f"openai-insecure-api-key.{TOKEN}"])
    lines = caplog.messages
    assert [line.rsplit(" ", 2)[0] for line in lines] == [
        "testclient GET /docs 200", "testclient GET /a%0ab%1b 401", "testclient WEBSOCKET /socket 101",
    ]  # fmt: skip
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(("host", "yes"), [
    ("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.9.9.9", True), ("0.0.0.0", False), ("", False),
    ("::", False), ("10.0.0.1", False), ("::ffff:10.0.0.1", False),
])  # fmt: skip
def test_loopback(host, yes):
    assert is_loopback(host) is yes
    if yes:
        return check_exposure(ServerSettings(host=host))
    with pytest.raises(ValueError, match=f"--host {host}: anybody .* OMNIKIT_TOKEN, or pass --insecure"):
        check_exposure(ServerSettings(host=host))
    check_exposure(ServerSettings(host=host, token=TOKEN))
    check_exposure(ServerSettings(host=host, insecure=True))


def test_bad_settings_are_refused_without_showing_the_token():
    for token in ("", "two words", "tab\t", "k\xf6nig", "line\n"):
        with pytest.raises(ValueError, match="--token: must be printable ASCII") as error:
            ServerSettings(token=token)
        assert not token or token not in str(error.value)
    assert TOKEN not in repr(ServerSettings(token=TOKEN))
    with pytest.raises(ValueError, match="--host no such name: this machine knows no such address"):
        is_loopback("no such name")
    with pytest.raises(ValueError, match="--max_sessions 0: must be 1 or more"):
        ServerSettings(max_sessions=0)
