"""The WebSocket `/v1/realtime`, which speaks OpenAI's Realtime protocol.

A session that cannot be opened is accepted, told why by an `error` event and closed, since clients show the message of
an event but not the body of a refused handshake, and browsers do not even see its status.
"""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from omnikit.serve.realtime.connection import Connection, new_id
from omnikit.serve.refusals import Refusal
from omnikit.serve.security import client_of
from omnikit.serve.serving import Serving

router = APIRouter()
PROTOCOL = "realtime"
"""Subprotocol that browsers offer together with their key; the one to select."""
TRY_AGAIN_LATER, INVALID_REQUEST = 1013, 4000
"""Close codes for a session without room (registered with IANA), and for one that will never be opened (private)."""


@router.websocket("/v1/realtime")
async def realtime(
    socket: WebSocket, model: str | None = None, intent: str | None = None, call_id: str | None = None
) -> None:
    """Hold a Realtime session with a client until either side closes it.

    Args:
        model: name of a served system; None = the first.
        intent, call_id: kinds of sessions that OpenAI has besides: transcription, and calls by WebRTC or SIP.
    """
    serving: Serving = socket.app.state.serving
    offered = socket.scope.get("subprotocols", [])
    await socket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
    try:
        _check_kind(intent, call_id)
        name = serving.name_of(model)
        with serving.admit_session(client_of(socket.scope)):
            await Connection(socket, serving, serving.systems[name], name).run()
    except Refusal as refusal:
        await _refuse(socket, refusal)


def _check_kind(intent: str | None, call_id: str | None) -> None:
    if call_id is not None:
        raise Refusal(400, "call_id: calls by WebRTC or SIP are not offered", code="invalid_value", param="call_id")
    if intent == "transcription":
        message = "intent 'transcription': not offered (choices: conversation); see /v1/audio/transcriptions"
        raise Refusal(400, message, code="invalid_value", param="intent")


async def _refuse(socket: WebSocket, refusal: Refusal) -> None:
    busy = refusal.status in (429, 503)
    error = refusal.error
    with suppress(WebSocketDisconnect):
        await socket.send_json({"type": "error", "event_id": new_id("event"), "error": {**error, "event_id": None}})
        await socket.close(TRY_AGAIN_LATER if busy else INVALID_REQUEST, f"{error['type']}.{error['code']}")
