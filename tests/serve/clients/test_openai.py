"""Talk to the server with the openai Python SDK, unmodified."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from websockets.exceptions import ConnectionClosedError

from omnikit.api import Omni

PIECE_SECONDS = 0.04
PATIENCE = 60.0
VAD = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 300}
SPOKEN_TURN = [
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.added",
    "conversation.item.done",
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]
"""Events of a spoken turn without its deltas."""


class Call:
    """A connection of the SDK whose events are collected, with a microphone that sends speech or silence."""

    def __init__(self, connection: AsyncRealtimeConnection):
        self.connection, self.events = connection, []
        self.heard = asyncio.Condition()
        self.speech = b""

    async def listen(self) -> None:
        async for event in self.connection:
            async with self.heard:
                self.events.append(event)
                self.heard.notify_all()

    async def microphone(self, rate: int = 24000) -> None:
        """Send pieces in real time, as a microphone does."""
        size = 2 * int(rate * PIECE_SECONDS)
        while True:
            piece, self.speech = self.speech[:size], self.speech[size:]
            await self.append(piece.ljust(size, b"\0"))
            await asyncio.sleep(PIECE_SECONDS)

    async def append(self, pcm: bytes) -> None:
        await self.connection.input_audio_buffer.append(audio=base64.b64encode(pcm).decode())

    async def until(self, kind: str, number: int = 1) -> Any:
        """Wait for the event of a type that comes for the `number`th time, and return it."""
        return await self.until_event(lambda event: event.type == kind, number)

    async def until_event(self, wanted: Callable[[Any], bool], number: int = 1) -> Any:
        """Wait for the `number`th event of a kind, and return it."""
        async with asyncio.timeout(PATIENCE), self.heard:
            while len(found := [event for event in self.events if wanted(event)]) < number:
                assert not [event for event in self.events if event.type == "error"]
                await self.heard.wait()
        return found[number - 1]

    def audio(self, response_id: str) -> bytes:
        deltas = [e for e in self.events if e.type == "response.output_audio.delta" and e.response_id == response_id]
        return b"".join(base64.b64decode(delta.delta) for delta in deltas)

    def text(self, response_id: str) -> str:
        """Transcript of an answer as far as it was sent."""
        kind = "response.output_audio_transcript.delta"
        return "".join(e.delta for e in self.events if e.type == kind and e.response_id == response_id)

    def order(self) -> list[str]:
        """Types of all events but deltas and those of the session."""
        kinds = [event.type for event in self.events]
        return [kind for kind in kinds if not kind.endswith(".delta") and not kind.startswith("session.")]


@asynccontextmanager
async def calling(server, model: str, **audio_input: object) -> AsyncIterator[Call]:
    """Open a session with options of its audio input."""
    async with AsyncOpenAI(base_url=server.url, api_key=server.token).realtime.connect(model=model) as connection:
        call = Call(connection)
        listening = asyncio.create_task(call.listen())
        await connection.session.update(session={"type": "realtime", "audio": {"input": audio_input}})
        assert (await call.until("session.created")).session.model == model
        await call.until("session.updated")
        try:
            yield call
        finally:
            listening.cancel()


@asynccontextmanager
async def microphone(call: Call) -> AsyncIterator[None]:
    task = asyncio.create_task(call.microphone())
    try:
        yield
    finally:
        task.cancel()


@pytest.fixture
def conversations(monkeypatch) -> list:
    """Return the list of all conversations that the server begins."""
    begun, begin = [], Omni.conversation
    monkeypatch.setattr(Omni, "conversation", lambda omni: begun.append(begin(omni)) or begun[-1])
    return begun


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_a_spoken_turn_detected_by_the_server(server, speech, loudness):
    async def talk() -> None:
        async with calling(server, "mini", turn_detection=VAD) as call, microphone(call):
            call.speech = speech("capital")
            done = (await call.until("response.done")).response
            assert done.status == "completed"
            assert call.order() == SPOKEN_TURN
            transcript = done.output[0].content[0].transcript
            assert "capital" in transcript
            deltas = [e.delta for e in call.events if e.type == "response.output_audio_transcript.delta"]
            assert "".join(deltas) == transcript
            assert loudness(call.audio(done.id)) > 0.01
            assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens > 0
            assert done.usage.input_token_details.audio_tokens > 0

    run(talk)


def test_push_to_talk(server, omni, speech, loudness):
    async def talk() -> None:
        async with calling(server, "mini", turn_detection=None) as call:
            pcm = speech("sum")
            for at in range(0, len(pcm), 9999):  # pieces may end within a sample
                await call.append(pcm[at : at + 9999])
            await call.connection.input_audio_buffer.commit()
            await call.connection.response.create()
            done = (await call.until("response.done")).response
            assert done.status == "completed"
            assert done.output[0].content[0].transcript
            assert loudness(call.audio(done.id)) > 0.01

    run(talk)


def test_written_turns(server, omni, conversations, loudness):
    """The answer is that of the API, once spoken and once in writing."""

    async def ask(call: Call, text: str, **options: object) -> None:
        content = [{"type": "input_text", "text": text}]
        await call.connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        await call.connection.response.create(**options)

    async def talk() -> None:
        api = omni.conversation()
        async with calling(server, "mini", turn_detection=None) as call:
            await ask(call, "what is two plus two")
            done = (await call.until("response.done")).response
            reply = api.say("what is two plus two")
            assert done.output[0].content[0].transcript == reply.text
            assert len(call.audio(done.id)) / 48000 == pytest.approx(len(reply.wav) / reply.sample_rate, abs=0.03)
            await ask(call, "what is the capital of france", response={"output_modalities": ["text"]})
            done = (await call.until("response.done", 2)).response
            reply = api.say("what is the capital of france", speak=False)
            assert done.output[0].content[0].text == reply.text
            assert done.usage.input_token_details.cached_tokens > 0
            assert conversations[-1].turns == api.turns

    run(talk)


def test_interrupted_by_speech_then_truncated_and_asked_again(server, conversations, speech):
    async def talk() -> None:
        async with calling(server, "long", turn_detection=VAD) as call, microphone(call):
            call.speech = speech("capital")
            first = await call.until("response.output_audio.delta")
            await call.until_event(lambda event: len(call.audio(first.response_id)) > 48000)  # one second
            call.speech = speech("sum")
            done = (await call.until("response.done")).response
            assert (done.status, done.status_details.reason) == ("cancelled", "turn_detected")
            assert len(call.audio(done.id)) / 48000 < 11  # of more than 12 seconds
            await call.connection.conversation.item.truncate(item_id=first.item_id, content_index=0, audio_end_ms=500)
            assert (await call.until("conversation.item.truncated")).audio_end_ms == 500
            second = (await call.until("response.created", 2)).response.id
            await call.until_event(lambda event: event.type.endswith("audio.delta") and event.response_id == second)
            await call.connection.response.cancel(response_id=second)
            done = (await call.until("response.done", 2)).response
            assert (done.status, done.status_details.reason) == ("cancelled", "client_cancelled")
            turns = conversations[-1].turns
            assert len(turns) == 2
            assert turns[0].answer == call.text(first.response_id)[: len(turns[0].answer)]
            assert len(turns[0].answer) < len(call.text(first.response_id))

    run(talk)


def test_an_unknown_model_is_named(server):
    async def talk() -> None:
        client = AsyncOpenAI(base_url=server.url, api_key=server.token)
        async with client.realtime.connect(model="nothing") as connection:
            error = (await connection.recv()).error
            assert (error.type, error.code, error.param) == ("invalid_request_error", "model_not_found", "model")
            assert "nothing" in error.message
            assert "mini, long" in error.message
            with pytest.raises(ConnectionClosedError, match="model_not_found"):
                await connection.recv()

    run(talk)
