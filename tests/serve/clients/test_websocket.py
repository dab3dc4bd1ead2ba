"""Talk to the server over a plain WebSocket: clients that make mistakes, leave, do not read, or come back."""

from __future__ import annotations

import base64
import gc
import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from omnikit.api import Omni
from omnikit.conversation import Conversation
from omnikit.generate import QueueFull
from omnikit.serve.realtime.connection import Connection
from omnikit.serve.realtime.session import RealtimeSession

PATIENCE = 60.0
MISTAKES = {
    "no JSON": ("{", "invalid_json"),
    "no object": ("[1]", "invalid_json"),
    "deep": ("[" * 100_000, "invalid_json"),
    "no number": ('{"type": "response.create", "response": {"max_output_tokens": NaN}}', "invalid_json"),
    "no type": ("{}", "missing_required_parameter"),
    "wrong type": ('{"type": {"a": 1}}', "unknown_event"),
    "unknown event": ('{"type": "session.destroy"}', "unknown_event"),
    "lone surrogate": ('{"type": "\\ud800"}', "invalid_json"),
    "binary": (b"\xff\x00", "invalid_json"),
    "audio is no base64": ('{"type": "input_audio_buffer.append", "audio": "no!"}', "invalid_value"),
    "audio is no text": ('{"type": "input_audio_buffer.append", "audio": 7}', "invalid_type"),
    "nothing to commit": ('{"type": "input_audio_buffer.commit"}', "input_audio_buffer_commit_empty"),
    "nothing to answer": ('{"type": "response.create"}', "no_question"),
    "nothing to cancel": ('{"type": "response.cancel"}', "response_cancel_not_active"),
    "no such item": ('{"type": "conversation.item.delete", "item_id": "x"}', "item_delete_invalid_item_id"),
}
"""Messages that a session answers with an error, and the code of the error."""


class Client:
    """An open session."""

    def __init__(self, socket: ClientConnection):
        self.socket = socket

    def send(self, kind: str, **fields: object) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def until(self, *kinds: str) -> dict:
        """Receive events up to one of some types, and return it."""
        end = time.monotonic() + PATIENCE
        while (event := json.loads(self.socket.recv(end - time.monotonic())))["type"] not in kinds:
            assert event["type"] != "error", event
        return event

    def ask(self, text: str) -> None:
        """Ask a written question."""
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        self.send("conversation.item.create", item=item)
        self.send("response.create")

    def answered(self, text: str = "what is two plus two") -> dict:
        """Ask a written question and return the response."""
        self.ask(text)
        return self.until("response.done")["response"]


@contextmanager
def session(server, model: str = "mini", **options) -> Iterator[Client]:
    """Open a session with push to talk."""
    headers = {"Authorization": f"Bearer {server.token}"}
    with connect(f"{server.websocket}?model={model}", additional_headers=headers, **options) as opened:
        client = Client(opened)
        client.until("session.created")
        client.send("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
        client.until("session.updated")
        yield client


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def free(server) -> bool:
    """Whether no session is open, and no answer is being generated."""
    systems = server.serving.systems.values()
    return server.serving.sessions == 0 and all(system.decoder.load == (0, 0) for system in systems)


@pytest.fixture
def conversations(monkeypatch) -> list[weakref.ref]:
    """Return references to all conversations that the server begins."""
    begun, begin = [], Omni.conversation

    def record(omni: Omni) -> Conversation:
        conversation = begin(omni)
        begun.append(weakref.ref(conversation))
        return conversation

    monkeypatch.setattr(Omni, "conversation", record)
    return begun


def test_a_session_survives_mistakes(server):
    with session(server) as client:
        for name, (message, code) in MISTAKES.items():
            client.socket.send(message)
            event = json.loads(client.socket.recv(PATIENCE))
            assert (event["type"], event["error"]["code"]) == ("error", code), name
        assert client.answered()["status"] == "completed"


def test_halves_of_samples_are_joined(server, speech):
    pcm = speech("sum")
    with session(server) as client:
        for part in (pcm[:1], pcm[1:4], pcm[4:10_003], pcm[10_003:], b"\0"):
            client.send("input_audio_buffer.append", audio=base64.b64encode(part).decode())
        client.send("input_audio_buffer.commit")
        item = client.until("conversation.item.done")["item"]
        client.send("conversation.item.retrieve", item_id=item["id"])
        audio = client.until("conversation.item.retrieved")["item"]["content"][0]["audio"]
        assert base64.b64decode(audio) == pcm


def test_much_audio_at_once_is_taken_in_slices(server, speech):
    pcm = speech("sum") * 8  # 14 seconds
    audio = base64.b64encode(pcm).decode()
    with session(server) as client:
        client.send("input_audio_buffer.append", audio=audio)
        client.send("input_audio_buffer.commit")
        item = client.until("conversation.item.done")["item"]
        client.send("conversation.item.retrieve", item_id=item["id"])
        assert client.until("conversation.item.retrieved")["item"]["content"][0]["audio"] == audio
        client.send("input_audio_buffer.append", audio=f"!{audio}", event_id="bad")
        error = json.loads(client.socket.recv(PATIENCE))["error"]
        assert (error["code"], error["event_id"]) == ("invalid_value", "bad")
        client.send("input_audio_buffer.commit")  # nothing was taken after the mistake, and one error was sent
        assert json.loads(client.socket.recv(PATIENCE))["error"]["code"] == "input_audio_buffer_commit_empty"


def test_a_frame_larger_than_the_limit_ends_the_connection(serve):
    server = serve(max_body_mib=0.25)
    with session(server) as client:
        client.send("input_audio_buffer.append", audio="A" * 100_000)
        with pytest.raises(ConnectionClosed) as closed:
            client.send("input_audio_buffer.append", audio="A" * 300_000)
            client.until("never")
        assert closed.value.rcvd.code == 1009
    wait_for(lambda: free(server))


def leave_politely(client: Client) -> None:
    client.socket.close()


def leave_at_once(client: Client) -> None:
    client.socket.socket.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("leave", [leave_politely, leave_at_once])
@pytest.mark.parametrize("event", ["response.created", "response.output_audio.delta"])
def test_a_client_that_leaves_frees_its_slot_and_its_conversation(server, conversations, leave, event):
    gc.collect()
    gc.disable()
    try:
        with session(server, "long") as client:
            client.ask("what is two plus two")
            client.until(event)
            leave(client)
            wait_for(lambda: free(server))
            wait_for(lambda: conversations[-1]() is None)
    finally:
        gc.enable()
    with session(server) as client:
        assert client.answered()["status"] == "completed"


def test_a_client_that_does_not_read_is_dropped_and_blocks_nobody(serve, speech):
    server = serve(send_buffer_seconds=1.0)
    with session(server) as neighbour, session(server, max_queue=1) as client:
        client.send("input_audio_buffer.append", audio=base64.b64encode(speech("sum") * 5).decode())
        client.send("input_audio_buffer.commit")
        item = client.until("conversation.item.done")["item"]["id"]
        for _ in range(40):  # 400 kB each
            client.send("conversation.item.retrieve", item_id=item)
        assert neighbour.answered()["status"] == "completed"
        wait_for(lambda: server.serving.sessions == 1)
        assert neighbour.answered()["status"] == "completed"
    wait_for(lambda: free(server))


def test_sessions_leave_nothing_behind(server, monkeypatch):
    connections, run = weakref.WeakSet(), Connection.run
    monkeypatch.setattr(Connection, "run", lambda connection: connections.add(connection) or run(connection))

    def open_and_close() -> None:
        with session(server) as client:
            client.send("input_audio_buffer.append", audio=base64.b64encode(bytes(4800)).decode())
        wait_for(lambda: free(server))

    open_and_close()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(5):
        open_and_close()
    gc.collect()
    assert not connections
    assert len(os.listdir("/proc/self/fd")) == files
    assert threading.active_count() <= threads  # idle decoding threads end


def test_more_sessions_than_allowed_are_refused(serve):
    server = serve(max_sessions=1)
    headers = {"Authorization": f"Bearer {server.token}"}
    with session(server), connect(server.websocket, additional_headers=headers) as second:
        error = json.loads(second.recv(PATIENCE))["error"]
        assert (error["type"], error["code"]) == ("server_error", "too_many_sessions")
        with pytest.raises(ConnectionClosed) as closed:
            second.recv(PATIENCE)
        assert closed.value.rcvd.code == 1013
    wait_for(lambda: free(server))
    with session(server):
        pass


@pytest.mark.parametrize("query", ["intent=transcription", "call_id=rtc_1"])
def test_other_kinds_of_sessions_are_refused(server, query):
    headers = {"Authorization": f"Bearer {server.token}"}
    with connect(f"{server.websocket}?{query}", additional_headers=headers) as refused:
        error = json.loads(refused.recv(PATIENCE))["error"]
        assert error["param"] == query.partition("=")[0]
        with pytest.raises(ConnectionClosed) as closed:
            refused.recv(PATIENCE)
        assert closed.value.rcvd.code == 4000


def test_browsers_send_their_key_as_a_subprotocol(server):
    offered = ["realtime", f"openai-insecure-api-key.{server.token}", "openai-agents-sdk.1"]
    with connect(server.websocket, subprotocols=offered) as opened:
        assert opened.subprotocol == "realtime"
        assert json.loads(opened.recv(PATIENCE))["type"] == "session.created"
    with session(server) as client:
        assert client.socket.subprotocol is None


def test_a_full_queue_fails_the_response_only(server, monkeypatch):
    def full(*args, **options) -> None:
        raise QueueFull("0 questions are waiting already")

    with session(server) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Conversation, "submit", full)
            response = client.answered()
            assert response["status"] == "failed"
            assert response["status_details"]["error"]["code"] == "server_busy"
        assert client.answered()["status"] == "completed"


def test_an_error_while_answering_is_logged_and_not_shown(server, monkeypatch, caplog):
    def fail(*args, **options) -> None:
        raise RuntimeError("secret detail")

    with session(server) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Conversation, "submit", fail)
            response = client.answered()
        assert response["status_details"]["error"]["code"] == "server_error"
        assert "secret" not in json.dumps(response)
        assert "secret detail" in caplog.text
        assert client.answered()["status"] == "completed"


def test_a_question_that_the_system_cannot_read_fails_the_response_only(server):
    with session(server) as client:
        response = client.answered("\u0416")
        assert response["status_details"]["error"]["code"] == "invalid_value"
        assert "tokenizer lacks" in response["status_details"]["error"]["message"]
        assert client.answered()["status"] == "completed"


def test_an_error_of_the_server_closes_the_connection(server, monkeypatch):
    with session(server) as neighbour, session(server) as client:
        with monkeypatch.context() as patch:
            patch.setattr(RealtimeSession, "receive", lambda *args: 1 / 0)
            client.send("response.create")
            with pytest.raises(ConnectionClosed) as closed:
                client.until("never")
            assert closed.value.rcvd.code == 1011
        assert neighbour.answered()["status"] == "completed"


def test_a_server_that_ends_finishes_the_answer_and_says_so(serve):
    server = serve()
    with session(server) as idle, session(server) as client:
        client.ask("what is two plus two")
        client.until("response.created")
        server.end()
        with pytest.raises(ConnectionClosed) as closed:
            idle.until("never")
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "the server is about to end")
        assert client.until("response.done")["response"]["status"] == "completed"
        with pytest.raises(ConnectionClosed) as closed:
            client.until("never")
        assert closed.value.rcvd.code == 1001


def test_a_server_that_ends_begins_no_answer(serve):
    server = serve()
    with session(server) as client:
        server.serving.draining = True  # its sessions do not know yet
        response = client.answered()
        assert response["status_details"]["error"]["code"] == "server_busy"
