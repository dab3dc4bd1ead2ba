"""Send mutated messages to the server: no error of the server, no hang, and nothing left behind.

`make fuzz` lets it run for minutes, see `tests/serve/fuzzing.py`.
"""

from __future__ import annotations

import base64
import json
import logging
import random
import time
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.serve.fuzzing import rounds

PATIENCE = 300.0
BATCH = 20
"""Number of messages between two looks at whether the session still answers."""
AUDIO = base64.b64encode(bytes(9600)).decode()
WRITTEN = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "what is two plus two"}]}
SPOKEN = {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": AUDIO}]}
ANSWER = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "four"}]}
ITEMS, G711 = (WRITTEN, SPOKEN, ANSWER), {"type": "audio/pcmu"}
VAD = {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 200, "idle_timeout_ms": 1000}
MESSAGES: list[dict[str, Any]] = [
    {"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"turn_detection": None}}}},
    {"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"turn_detection": VAD}}}},
    {"type": "session.update", "session": {"type": "realtime", "audio": {"output": {"format": G711}}}},
    {"type": "session.update", "session": {"type": "realtime", "output_modalities": ["text"], "tools": [{"a": 1}]}},
    {"type": "input_audio_buffer.append", "audio": AUDIO},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"},
    *({"type": "conversation.item.create", "previous_item_id": None, "item": item} for item in ITEMS),
    *({"type": f"conversation.item.{name}", "item_id": "ITEM"} for name in ("retrieve", "delete")),
    {"type": "conversation.item.truncate", "item_id": "ITEM", "content_index": 0, "audio_end_ms": 100},
    {"type": "response.create"},
    {"type": "response.create", "response": {"conversation": "none", "input": [WRITTEN], "max_output_tokens": 5}},
    {"type": "response.cancel"},
]
JUNK = [None, True, 0, -1, 1e308, 2**70, "", "x", "\ud800", "\0", "inf", [], {}, [None], {"type": None}, "a" * 70_000]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container in a message with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def mutated(draw: random.Random, items: list[str]) -> str | bytes:
    """Return a message with a few changes, often none."""
    message = deepcopy(draw.choice(MESSAGES))
    if message.get("item_id") == "ITEM" and items:
        message["item_id"] = draw.choice(items)
    for _ in range(draw.choice([0, 0, 0, 1, 1, 2, 3])):
        container, key = draw.choice(list(places(message)))
        if draw.random() < 0.3:
            container.pop(key)
        elif draw.random() < 0.5:
            container[key] = deepcopy(draw.choice(JUNK))
        else:
            other, name = draw.choice(list(places(draw.choice(MESSAGES))))
            container[key] = deepcopy(other[name])
        if not message:
            break
    text = json.dumps(message)
    if draw.random() < 0.1:
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice(["", "\0", '"', "}", "\u2028", "NaN"]) + text[at + draw.randrange(3) :]
    return text.encode() if draw.random() < 0.05 else text


def alive(socket: ClientConnection, mark: str, items: list[str]) -> None:
    """Ask for an item that is not there, and receive events up to the error that says so."""
    socket.send(json.dumps({"type": "conversation.item.retrieve", "item_id": "none", "event_id": mark}))
    while True:
        event = json.loads(socket.recv(PATIENCE))
        if event["type"] == "conversation.item.added":
            items.append(event["item"]["id"])
        if event["type"] == "error" and event["error"]["event_id"] == mark:
            return


def test_mutated_messages(serve, caplog):
    server, sent = serve(idle_seconds=30.0, max_items=40), 0
    headers = {"Authorization": f"Bearer {server.token}"}
    for draw in rounds(8.0):
        with connect(f"{server.websocket}?model=mini", additional_headers=headers, ping_interval=None) as socket:
            items: list[str] = []
            try:
                for batch in range(10):
                    for _ in range(BATCH):
                        socket.send(mutated(draw, items))
                    alive(socket, f"batch {batch}", items)
                    sent += BATCH
            except ConnectionClosed as closed:
                assert closed.rcvd is not None and closed.rcvd.code == 1000, closed
    print(f"{sent} messages")
    assert sent
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    wait_until = time.monotonic() + PATIENCE
    while server.serving.sessions or any(omni.decoder.load != (0, 0) for omni in server.serving.systems.values()):
        assert time.monotonic() < wait_until
        time.sleep(0.02)
