"""A small Realtime server that answers every question with a tone, for tests of the page that need no system."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

import omnikit.serve

PAGE = Path(omnikit.serve.__file__).parent / "page"
POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
RATE = 24000
CHUNK = RATE // 5
FULL = "64 sessions are open, the maximum"
LOUD = 0.02
"""Amplitude above which a frame of the client counts as speech."""
PAUSE = RATE // 2
"""Number of samples without speech that end a turn."""


@dataclass
class Script:
    """Instructions for the stand-in server, and a record of what happened so far."""

    seconds: float = 1.2
    """Length of an answer."""
    pause: float = 0.02
    """Seconds between two chunks of an answer."""
    token: str | None = None
    models: tuple[str, ...] = ("tone",)
    full: bool = False
    """Whether sessions are refused before they begin."""
    events: list[dict] = field(default_factory=list)
    """All events of clients, in order."""
    sockets: list[Session] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    """Numbers of the ids, each of which occurs once."""
    loop: asyncio.AbstractEventLoop | None = None

    def types(self) -> list[str]:
        """Return the types of all events of clients but the appended audio."""
        return [event["type"] for event in self.events if event["type"] != "input_audio_buffer.append"]

    def close(self, code: int, reason: str) -> None:
        """Close the newest session from any thread."""
        asyncio.run_coroutine_threadsafe(self.sockets[-1].socket.close(code, reason), self.loop).result(5)


def tone(samples: int) -> np.ndarray:
    """Return a swelling tone [samples] of 16 bit."""
    time = np.arange(samples) / RATE
    return (9000 * np.sin(2 * np.pi * 220 * time) * np.sin(np.pi * time * 2.5) ** 2).astype("<i2")


class Session:
    """Connection of one client, with its state."""

    def __init__(self, socket: WebSocket, script: Script):
        self.socket = socket
        self.script = script
        self.detects = False
        self.transcribes = False
        self.heard = 0  # samples on the clock of the session
        self.quiet = 0  # samples since the last loud frame of a turn
        self.item: str | None = None  # id of the question that is being spoken
        self.answer: asyncio.Task | None = None

    async def run(self) -> None:
        await self.send("session.created", session={"type": "realtime", "model": self.script.models[0]})
        with suppress(WebSocketDisconnect):
            while True:
                event = json.loads(await self.socket.receive_text())
                self.script.events.append(event)
                handle = getattr(self, "on_" + event["type"].replace(".", "_"), None)
                if handle:
                    await handle(event)
        if self.answer:
            self.answer.cancel()

    def name(self, kind: str) -> str:
        return f"{kind}_{next(self.script.numbers)}"

    async def send(self, kind: str, **fields) -> None:
        await self.socket.send_text(json.dumps({"type": kind, "event_id": self.name("event"), **fields}))

    async def on_session_update(self, event: dict) -> None:
        given = event["session"]["audio"]["input"]
        self.detects = given["turn_detection"] is not None
        self.transcribes = given["transcription"] is not None
        await self.send("session.updated", session=event["session"])

    async def on_input_audio_buffer_append(self, event: dict) -> None:
        samples = np.frombuffer(base64.b64decode(event["audio"]), "<i2")
        self.heard += len(samples)
        if not self.detects:
            return
        loud = np.abs(samples).max(initial=0) > LOUD * 32768
        self.quiet = 0 if loud else self.quiet + len(samples)
        if loud and self.item is None:
            self.item = self.name("item")
            start = max(0, self.heard * 1000 // RATE - 300)
            await self.send("input_audio_buffer.speech_started", audio_start_ms=start, item_id=self.item)
            await self.cancel("turn_detected")
        elif self.item is not None and self.quiet >= PAUSE:
            end = self.heard * 1000 // RATE
            await self.send("input_audio_buffer.speech_stopped", audio_end_ms=end, item_id=self.item)
            item, self.item = self.item, None
            await self.commit(item)
            self.answer = asyncio.create_task(self.respond(None))

    async def on_input_audio_buffer_commit(self, event: dict) -> None:
        await self.commit(self.name("item"))

    async def commit(self, item: str) -> None:
        await self.send("input_audio_buffer.committed", item_id=item, previous_item_id=None)
        if self.transcribes:
            kind = "conversation.item.input_audio_transcription.completed"
            await self.send(kind, item_id=item, content_index=0, transcript="what was said")

    async def on_response_create(self, event: dict) -> None:
        self.answer = asyncio.create_task(self.respond(event["response"]["metadata"]))

    async def on_response_cancel(self, event: dict) -> None:
        if self.answer is None or self.answer.done():
            error = {"type": "invalid_request_error", "code": "response_cancel_not_active", "message": "no answer"}
            await self.send("error", error=error)
        await self.cancel("client_cancelled")

    async def cancel(self, reason: str) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.cancel()
            with suppress(asyncio.CancelledError):
                await self.answer
            details = {"type": "cancelled", "reason": reason}
            response = {"id": self.response, "status": "cancelled", "status_details": details, "output": []}
            await self.send("response.done", response=response)

    async def respond(self, metadata: dict | None) -> None:
        self.response, item = self.name("resp"), self.name("item")
        where = {"response_id": self.response, "item_id": item, "output_index": 0, "content_index": 0}
        response = {"id": self.response, "metadata": metadata, "status": "in_progress", "output": []}
        await self.send("response.created", response=response)
        await self.send("response.output_item.added", response_id=self.response, output_index=0, item={"id": item})
        samples = tone(int(self.script.seconds * RATE))
        words = iter(["this", "is", "the", "tone", "that", "you", "asked", "for"])
        for start in range(0, len(samples), CHUNK):
            await self.send("response.output_audio_transcript.delta", **where, delta=next(words, "and on") + " ")
            audio = base64.b64encode(samples[start : start + CHUNK].tobytes()).decode()
            await self.send("response.output_audio.delta", **where, delta=audio)
            await asyncio.sleep(self.script.pause)
        await self.send("response.output_audio.done", **where)
        await self.send("response.done", response=response | {"status": "completed", "status_details": None})


def stand_in(script: Script) -> Starlette:
    """Return the server's app."""

    def models(request):
        if script.token and request.headers.get("authorization") != f"Bearer {script.token}":
            return JSONResponse({"error": {"message": "no"}}, 401)
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in script.models]})

    async def realtime(socket: WebSocket) -> None:
        wanted = f"openai-insecure-api-key.{script.token}"
        if script.token and wanted not in socket.scope["subprotocols"]:
            await socket.close()
            return
        await socket.accept(subprotocol="realtime")
        if script.full:
            await socket.send_json({"type": "error", "error": {"message": FULL, "code": "too_many_sessions"}})
            await socket.close(1013)
            return
        script.sockets.append(Session(socket, script))
        await script.sockets[-1].run()

    files = StaticFiles(directory=PAGE, html=True)
    routes = [Route("/v1/models", models), WebSocketRoute("/v1/realtime", realtime), Mount("/", files)]
    return Starlette(routes=routes)


class WithPolicy:
    """An app whose files forbid all scripts, styles and connections of elsewhere."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


@contextmanager
def served(script: Script) -> Iterator[str]:
    """Serve in a thread and yield the address."""

    async def run() -> None:
        script.loop = asyncio.get_running_loop()
        await server.serve()

    options = {"log_level": "error", "lifespan": "off", "ws": "websockets-sansio"}
    server = uvicorn.Server(uvicorn.Config(WithPolicy(stand_in(script)), port=0, **options))
    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        while not server.started:
            thread.join(0.02)
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
