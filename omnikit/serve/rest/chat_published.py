"""`POST /chat` as the published Mini-Omni server has it: a recording in JSON, answered by samples as they come.

Source: https://github.com/gpt-omni/mini-omni, `server.py` and `webui/omni_gradio.py`.
"""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from omnikit.serve import bridge
from omnikit.serve.rest.answers import MeasuredAnswer, Served, Streamed, decoding_for
from omnikit.serve.rest.errors import bad_input, blames, validated
from omnikit.serve.rest.json_bodies import JsonRoute
from omnikit.serve.rest.recordings import decode, from_base64
from omnikit.serve.rest.response_bodies import BINARY
from omnikit.serve.rest.speech import audio
from omnikit.serve.rest.written_audio import open_writer
from omnikit.streaming import EXACT
from omnikit.tasks import TASKS

router = APIRouter(route_class=JsonRoute)
MEDIA_TYPE = "audio/wav"
"""Type that the published server states for its body, which is samples without a header."""


class PublishedRequest(BaseModel):
    """A spoken question. `stream_stride` has no effect: chunks are short at first and longer later."""

    audio: str = Field(description="Base64 of a sound file.")
    stream_stride: int = Field(4, ge=1)
    max_tokens: int = Field(2048, ge=1, description="Maximum number of decode steps.")


def _schema() -> dict[str, object]:
    return {"requestBody": {"content": {"application/json": {"schema": PublishedRequest.model_json_schema()}}}}


@router.post(
    "/chat",
    response_class=Response,
    responses={200: {"content": {MEDIA_TYPE: BINARY}}},
    openapi_extra=_schema(),
)
async def chat(http: Request, serving: Served) -> Streamed:
    """Answer a spoken question by speech: signed 16 bit little-endian samples, mono, 24 kHz, without a header.

    The first system that is served answers. The body is read as JSON whatever its type is said to be.
    """
    try:
        content = await http.json()
    except (ValueError, RecursionError) as error:
        raise bad_input(f"body: not valid JSON ({error})", code="invalid_json") from None
    body = validated(PublishedRequest, content)
    omni = serving.system(None)
    with blames("audio"):
        data = await bridge.in_thread(from_base64, body.audio, "audio")
        question = (await bridge.in_thread(decode, data, "audio", serving, omni)).question(omni)
    options = {"decoding": decoding_for(serving, omni, max_steps=body.max_tokens), "sound": EXACT}
    submit = partial(omni.decoder.submit, TASKS["A1A2"], question, **options)
    answer = MeasuredAnswer(serving, "chat_published", omni, submit)
    await answer.begin(http)
    return Streamed(audio(answer, open_writer("pcm", omni.sample_rate)), answer, MEDIA_TYPE)
