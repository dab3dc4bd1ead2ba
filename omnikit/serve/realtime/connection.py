"""One Realtime connection: events and audio between a client, the state machine of its session and a system.

    client -> reader -> session -> actions -> outbox -> writer -> client
                         ^   ^        |
        turn detector ---'   '--------+--- answers, one task each

The session's methods are called in the event loop, one at a time, and the actions of each are carried out at once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from omnikit.serve.realtime.actions import (
    Action,
    Cancel,
    Close,
    Crop,
    Detect,
    Forget,
    Heard,
    Listen,
    Remember,
    Send,
    StartAnswer,
    Transcribe,
    Usage,
)
from omnikit.serve.realtime.answers import BUSY, RunningAnswers
from omnikit.serve.realtime.events import MAX_AUDIO_BYTES, ProtocolError, decoded
from omnikit.serve.realtime.listener import Listener
from omnikit.serve.realtime.outbox import Outbox, Overflow
from omnikit.serve.realtime.session import RealtimeSession
from omnikit.serve.serving import limits_of

if TYPE_CHECKING:
    from omnikit.api import Omni
    from omnikit.serve.serving import Serving

_logger = logging.getLogger(__name__)
GOING_AWAY, SERVER_ERROR = 1001, 1011
"""Close codes (RFC 6455, section 7.4.1): the server is about to end; the server has an error."""
TICK_SECONDS = 1.0
"""Time between two looks at the session's limits of time."""
SLICE = 2**18
"""Number of base64 characters of audio that a session takes at once; a multiple of 4."""
LAST_WORDS_SECONDS = 5.0
"""Time that a client has to take a close frame after an error of the server."""


class Connection:
    """An accepted WebSocket with its session, until either side closes it.

    Args:
        socket: accepted WebSocket.
        serving: the server's settings, metrics and state.
        omni: system that answers.
        model: name of the system.

    Raises:
        ValueError: the system's engine cannot hold a conversation.
    """

    def __init__(self, socket: WebSocket, serving: Serving, omni: Omni, model: str):
        self._socket, self._serving, self._settings = socket, serving, limits_of(omni, serving.settings)
        self._session = RealtimeSession(model, self._settings, now=monotonic, new_id=new_id, out_rate=omni.sample_rate)
        self._answers = RunningAnswers(omni, serving.metrics, self, seconds=self._settings.request_seconds)
        self._listener = Listener(self.heard)
        self._outbox = Outbox()
        self._rate = omni.sample_rate
        self._silent_at = 0.0  # when the client will have played all speech that it was sent
        self._silence: asyncio.TimerHandle | None = None  # from then on it is waited for the user
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing = False

    async def run(self) -> None:
        """Serve the client until either side closes the connection, and cancel its answers then."""
        ends = [asyncio.create_task(work) for work in (self._write(), self._read())]
        helpers = [asyncio.create_task(work) for work in (self._listener.run(), self._tick(), self._drain())]
        for task in (*ends, *helpers):
            task.add_done_callback(self._note_error)
        try:
            self._act(self._session.opened)
            await asyncio.wait([*ends, self._failure], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._closing = True
            for task in (*ends, *helpers):
                task.cancel()
            await asyncio.gather(*ends, *helpers, return_exceptions=True)
            await self._answers.close()
            self._end_silence()
            self._session.closed()
        if self._failure.done():
            await self._apologise(self._failure.exception())

    # reports to the session

    def heard(self, heard: Heard) -> None:
        """Handle a report of the turn detector."""
        self._act(self._session.heard, heard)

    def chunk(self, response_id: str, text: str, samples: np.ndarray) -> None:
        """Handle a chunk of an answer."""
        self._silent_at = max(self._silent_at, monotonic()) + len(samples) / self._rate
        self._act(self._session.chunk, response_id, text, samples)

    def answered(self, response_id: str, end: str, usage: Usage) -> None:
        """Handle the end of an answer."""
        self._act(self._session.answered, response_id, end, usage)
        self._ended(response_id)

    def failed(self, response_id: str, message: str, code: str) -> None:
        """Handle the error that ended an answer."""
        self._act(self._session.failed, response_id, message, code)
        self._ended(response_id)

    def transcribed(self, item_id: str, text: str) -> None:
        """Handle the transcript of a spoken question."""
        self._act(self._session.transcribed, item_id, text)

    def not_transcribed(self, item_id: str, message: str) -> None:
        """Handle the error for which a spoken question has no transcript."""
        self._act(self._session.not_transcribed, item_id, message)

    def _act(self, method: Callable[..., list[Action]], *args: Any) -> list[Action]:
        """Call a method of the session, carry out its actions, and return them; an error ends the connection."""
        if self._closing:
            return []
        try:
            actions = method(*args)
            for action in actions:
                self._carry_out(action)
            return actions
        except Exception as error:  # in whichever task it happens
            self._fail(error)
            return []

    # its actions

    def _carry_out(self, action: Action) -> None:
        match action:
            case Send():
                self._outbox.put(action.event)
            case Detect():
                self._listener.detect(action.detection)
            case Listen():
                self._listener.listen(action.samples)
            case StartAnswer():
                self._start(action)
            case Cancel():
                self._cancel(action.response_id)
            case Crop() | Forget() | Remember():
                self._answers.edit(action)
            case Transcribe():
                self._answers.transcribe(action)
            case Close():
                self._closing = True
                self._outbox.close(action)

    def _start(self, answer: StartAnswer) -> None:
        self._end_silence()
        self._listener.pause_idle()
        if self._serving.draining:  # after the actions that follow this one
            report = self.failed, answer.response_id, "The server is about to end.", BUSY
            asyncio.get_running_loop().call_soon(*report)
        else:
            self._answers.start(answer)

    def _end_silence(self) -> None:
        if self._silence is not None:
            self._silence.cancel()

    def _cancel(self, response_id: str) -> None:
        self._silent_at = 0.0
        self._outbox.silence(response_id)
        if response_id in self._answers:
            self._answers.cancel(response_id)
        else:
            self._outbox.forget(response_id)

    def _ended(self, response_id: str) -> None:
        self._outbox.forget(response_id)
        if not (self._answers.running or self._closing):
            left = max(0.0, self._silent_at - monotonic())
            self._silence = asyncio.get_running_loop().call_later(left, self._listener.start_idle)

    # tasks

    async def _read(self) -> None:
        """Pass events on to the session until the client leaves; one at a time, once its audio has been heard."""
        while (message := await self._socket.receive())["type"] != "websocket.disconnect":
            text = message.get("text")
            for event in _slices(message["bytes"].decode(errors="replace") if text is None else text):
                actions = self._act(self._session.receive, event)
                await self._listener.caught_up()
                await self._answers.caught_up()
                await asyncio.sleep(0)  # other connections have their turn
                if any(isinstance(action, Send) and action.event["type"] == "error" for action in actions):
                    break

    async def _write(self) -> None:
        """Send what waits in the outbox until it ends, or the client has not read for too long."""
        while isinstance(text := await self._outbox.take(), str):
            if not await self._sent(self._socket.send_text(text)):
                return
        await self._sent(self._socket.close(text.code, _short(text.reason)))

    async def _sent(self, sending: Coroutine[Any, Any, None]) -> bool:
        """Send, and return whether the client took it in time."""
        try:
            await asyncio.wait_for(sending, self._settings.send_buffer_seconds)
        except (TimeoutError, WebSocketDisconnect, RuntimeError):  # the last one from uvicorn after a missing pong
            return False
        return True

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._act(self._session.tick)

    async def _drain(self) -> None:
        """Close the connection after the running answers once the server is about to end."""
        await self._serving.until_draining()
        while self._answers.running:
            await asyncio.sleep(0.05)
        self._carry_out(Close(GOING_AWAY, "the server is about to end"))

    # errors

    def _note_error(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End the connection because of an error."""
        self._closing = True
        if not self._failure.done():
            self._failure.set_exception(error)

    async def _apologise(self, error: BaseException) -> None:
        """Close the connection after an error: that of a client that does not read at once, any other with a reason."""
        if isinstance(error, Overflow | WebSocketDisconnect):
            return
        _logger.error("Realtime session failed", exc_info=error)
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            closing = self._socket.close(SERVER_ERROR, "the server had an error")
            await asyncio.wait_for(closing, LAST_WORDS_SECONDS)


def new_id(kind: str) -> str:
    """Return an id that nothing else has, such as `item_8f0c...`."""
    return f"{kind}_{secrets.token_hex(12)}"


def _slices(text: str) -> Iterator[str | dict[str, Any]]:
    """Yield an event, or several in place of one that appends much audio, so that no other connection waits for it."""
    if len(text) <= SLICE:
        yield text
        return
    try:
        event = decoded(text)
    except ProtocolError:
        yield text  # for the session to report
        return
    if not _appends(event):
        yield event
        return
    audio = event["audio"]
    for at in range(0, len(audio), SLICE):
        yield {**event, "audio": audio[at : at + SLICE]}


def _appends(event: Any) -> bool:
    """Return whether an event appends audio that a session accepts."""
    if not isinstance(event, dict) or event.get("type") != "input_audio_buffer.append":
        return False
    audio = event.get("audio")
    return isinstance(audio, str) and 0 < len(audio) <= 4 * MAX_AUDIO_BYTES // 3


def _short(reason: str) -> str:
    """Return the reason of a close frame, cut to the number of bytes that the frame may hold."""
    return reason.encode()[:123].decode(errors="ignore")
