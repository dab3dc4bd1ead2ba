"""`POST /v1/audio/transcriptions`: the transcript of an uploaded recording."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field, field_validator

from omnikit.serve import bridge
from omnikit.serve.rest import sse
from omnikit.serve.rest.answers import MeasuredAnswer, Served, Streamed, decoding_for
from omnikit.serve.rest.errors import bad_input, blames, validated
from omnikit.serve.rest.recordings import decode
from omnikit.serve.rest.response_bodies import Body
from omnikit.serve.rest.subtitles import VerboseTranscription, srt, verbose, vtt
from omnikit.serve.rest.uploads import FORM, read_upload
from omnikit.serve.rest.usage import TranscriptionUsage, transcription_usage
from omnikit.tasks import TASKS

router = APIRouter()
FILE = "file"


class TranscriptionForm(BaseModel):
    """The fields beside the file.

    `language`, `prompt` and `chunking_strategy` have no effect. A temperature above 0 samples the text.
    """

    model: str
    language: str | None = None
    prompt: str | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: float = Field(0, ge=0, le=1)
    stream: bool = False
    chunking_strategy: str | None = None
    include: list[str] = []
    timestamp_granularities: list[Literal["segment"]] = ["segment"]

    @field_validator("include")
    @classmethod
    def _nothing(cls, names: list[str]) -> list[str]:
        if names:
            raise ValueError("log probabilities are not computed")
        return names


class Transcription(Body):
    """The body of a transcription whose `response_format` is `json`."""

    text: str
    usage: TranscriptionUsage


class TranscriptTextDelta(Body):
    """The body of a server-sent event with a part of a streamed transcript."""

    type: Literal["transcript.text.delta"]
    delta: str


class TranscriptTextDone(Body):
    """The body of the server-sent event that ends a streamed transcript, with the whole text."""

    type: Literal["transcript.text.done"]
    text: str
    usage: TranscriptionUsage


EVENTS = (TranscriptTextDelta, TranscriptTextDone)
"""Bodies of the server-sent events of a streamed transcript."""
_TEXT = {"schema": {"type": "string"}}


def _form_schema() -> dict[str, Any]:
    schema = TranscriptionForm.model_json_schema()
    schema["properties"][FILE] = {"type": "string", "format": "binary"}
    return {"requestBody": {"required": True, "content": {FORM: {"schema": schema | {"required": [FILE, "model"]}}}}}


@router.post(
    "/audio/transcriptions",
    response_class=Response,
    responses={
        200: {
            "model": Transcription | VerboseTranscription,
            "content": {"text/plain": _TEXT, "text/vtt": _TEXT, sse.MEDIA_TYPE: sse.described(EVENTS)},
        }
    },
    openapi_extra=_form_schema(),
)
async def transcriptions(http: Request, serving: Served) -> Response:
    """Transcribe a recording of at most 30 s; the form's file may have any format that libsndfile reads."""
    upload = await read_upload(http, FILE)
    form = validated(TranscriptionForm, upload.fields)
    omni = serving.system(form.model)
    if upload.file is None:
        raise bad_input(f"{FILE}: a file is wanted", FILE)
    if form.stream and form.response_format not in ("json", "text"):
        raise bad_input(f"response_format: {form.response_format} cannot be streamed (choices: json, text)", "stream")
    with blames(FILE):
        recording = await bridge.in_thread(decode, upload.file, FILE, serving, omni)
        question = recording.question(omni)
    with blames("temperature"):
        decoding = decoding_for(serving, omni, temperature=form.temperature or None)
    answer = MeasuredAnswer(
        serving, "transcription", omni, lambda: omni.decoder.submit(TASKS["A1T1"], question, decoding=decoding)
    )
    if form.stream:
        await answer.begin(http)
        return Streamed(sse.events(_events(answer)), answer, sse.MEDIA_TYPE)
    text = (await answer.whole(http)).text
    return _WRITE[form.response_format](text, recording.seconds, form, answer)


async def _events(answer: MeasuredAnswer) -> AsyncGenerator[Body, None]:
    texts = []
    async for chunk in answer:
        if chunk.text:
            texts.append(chunk.text)
            yield TranscriptTextDelta(type="transcript.text.delta", delta=chunk.text)
    usage = transcription_usage(answer.request.counts)
    yield TranscriptTextDone(type="transcript.text.done", text="".join(texts), usage=usage)


def _json(text: str, seconds: float, form: TranscriptionForm, answer: MeasuredAnswer) -> Response:
    return JSONResponse(Transcription(text=text, usage=transcription_usage(answer.request.counts)).as_dict())


def _verbose_json(text: str, seconds: float, form: TranscriptionForm, answer: MeasuredAnswer) -> Response:
    return JSONResponse(verbose(text, seconds, language=form.language, temperature=form.temperature).as_dict())


_WRITE: dict[str, Callable[[str, float, TranscriptionForm, MeasuredAnswer], Response]] = {
    "json": _json,
    "verbose_json": _verbose_json,
    "text": lambda text, *_: PlainTextResponse(f"{text}\n"),
    "srt": lambda text, seconds, *_: PlainTextResponse(srt(text, seconds)),
    "vtt": lambda text, seconds, *_: PlainTextResponse(vtt(text, seconds), media_type="text/vtt"),
}
"""Mapping from the name of a response format to the function that writes it."""
