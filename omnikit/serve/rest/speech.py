"""`POST /v1/audio/speech`: a text, spoken as audio while it is generated."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from omnikit.serve import bridge
from omnikit.serve.rest import sse
from omnikit.serve.rest.answers import MeasuredAnswer, Served, Streamed, decoding_for
from omnikit.serve.rest.errors import blames
from omnikit.serve.rest.json_bodies import JsonRoute
from omnikit.serve.rest.response_bodies import BINARY, Body
from omnikit.serve.rest.usage import TokenUsage, token_usage
from omnikit.serve.rest.written_audio import FORMATS, AudioWriter, check_format, open_writer
from omnikit.streaming import EXACT
from omnikit.tasks import TASKS

router = APIRouter(route_class=JsonRoute)
MOST_CHARACTERS = 4096
"""Maximum number of characters of a text, that of OpenAI's server."""


class SpeechRequest(BaseModel):
    """A text to speak. `voice`, `speed` and `instructions` have no effect: a system has one voice."""

    model: str
    input: str = Field(min_length=1, max_length=MOST_CHARACTERS)
    voice: str | dict[str, Any] | None = None
    response_format: str = Field("mp3", description=f"One of {', '.join(FORMATS)}.")
    stream_format: Literal["audio", "sse"] = "audio"
    speed: float = Field(1.0, ge=0.25, le=4)
    instructions: str | None = None


class SpeechAudioDelta(Body):
    """The body of a server-sent event with the next bytes of streamed speech."""

    type: Literal["speech.audio.delta"]
    audio: str = Field(description="Base64 of the next bytes of the file.")


class SpeechAudioDone(Body):
    """The body of the server-sent event that ends streamed speech, with the numbers of tokens."""

    type: Literal["speech.audio.done"]
    usage: TokenUsage


EVENTS = (SpeechAudioDelta, SpeechAudioDone)
"""Bodies of the server-sent events of streamed speech."""
_FILES = {each.media_type: BINARY for each in FORMATS.values()}


@router.post(
    "/audio/speech",
    response_class=Response,
    responses={200: {"content": _FILES | {sse.MEDIA_TYPE: sse.described(EVENTS)}}},
)
async def speech(body: SpeechRequest, http: Request, serving: Served) -> Response:
    """Speak a text; the audio (mono, 24 kHz) is sent while it is generated."""
    omni = serving.system(body.model)
    with blames("response_format"):
        check_format(body.response_format)
    with blames("input"):
        question = omni.written_question(body.input)
    options = {"decoding": decoding_for(serving, omni), "sound": EXACT}
    answer = MeasuredAnswer(serving, "speech", omni, lambda: omni.decoder.submit(TASKS["T1A1"], question, **options))
    await answer.begin(http)
    writer = open_writer(body.response_format, omni.sample_rate)
    if body.stream_format == "sse":
        return Streamed(sse.events(_events(answer, writer)), answer, sse.MEDIA_TYPE)
    return Streamed(audio(answer, writer), answer, FORMATS[body.response_format].media_type)


async def audio(answer: MeasuredAnswer, writer: AudioWriter) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of an answer's speech as they are written."""
    async for chunk in answer:
        if data := await bridge.in_thread(writer.push, chunk.wav.numpy()):
            yield data
    if data := await bridge.in_thread(writer.finish):
        yield data


async def _events(answer: MeasuredAnswer, writer: AudioWriter) -> AsyncGenerator[Body, None]:
    async for data in audio(answer, writer):
        yield SpeechAudioDelta(type="speech.audio.delta", audio=base64.b64encode(data).decode())
    yield SpeechAudioDone(type="speech.audio.done", usage=token_usage(answer.request.counts))
