"""`POST /v1/chat/completions`: a spoken or written question, answered with text or with text and speech."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from omnikit import generate
from omnikit.api import Omni
from omnikit.conversation import TASK_OF
from omnikit.generate.request import SEED
from omnikit.serve import bridge
from omnikit.serve.rest import sse
from omnikit.serve.rest.answers import MeasuredAnswer, Served, Streamed, decoding_for, unless_gone
from omnikit.serve.rest.completions import (
    ChatCompletion,
    ChatCompletionAudio,
    ChatCompletionAudioDelta,
    ChatCompletionChunk,
    ChatCompletionDelta,
    Completion,
    finish_reason,
)
from omnikit.serve.rest.dialogs import Asked, Exchanged, Message, read_dialog
from omnikit.serve.rest.errors import bad_input, blames
from omnikit.serve.rest.json_bodies import JsonRoute
from omnikit.serve.rest.remembered import as_history, as_question
from omnikit.serve.rest.spoken_answers import Spoken, SpokenAnswers
from omnikit.serve.rest.usage import completion_usage
from omnikit.serve.rest.written_audio import FORMATS, encoded, open_writer
from omnikit.serve.serving import Serving
from omnikit.streaming import EXACT
from omnikit.tasks import TASKS

router = APIRouter(route_class=JsonRoute)
MOST_RECORDINGS = 32
"""Maximum number of recordings in the messages of one request; each is transcribed, or answered."""
MOST_CHARACTERS = 100_000
"""Maximum number of characters of all messages of one request; the systems' backbones remember fewer."""
PCM = "pcm16"
"""OpenAI's name for samples without a header in chat completions, the one format that is streamed."""
_WRITTEN_AS = {PCM: "pcm"} | {name: name for name in FORMATS if name != "pcm"}

EVENTS = (ChatCompletionChunk,)
"""Bodies of the server-sent events of a streamed chat completion."""


class AudioOptions(BaseModel):
    """Options of a spoken answer. `voice` has no effect."""

    format: str = Field(description=f"One of {', '.join(_WRITTEN_AS)}; {PCM} if the answer is streamed.")
    voice: str | dict[str, Any] | None = None


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool = False


class ResponseFormat(BaseModel):
    """Form of an answer's text."""

    type: str = "text"


class ChatRequest(BaseModel):
    """A dialog whose last question is to be answered.

    Fields of OpenAI's API that are not listed here have no effect.
    """

    model: str
    messages: list[Message] = Field(min_length=1)
    modalities: list[Literal["text", "audio"]] | None = None
    audio: AudioOptions | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    n: int | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    logprobs: bool | None = None
    stop: str | list[str] | None = None
    response_format: ResponseFormat | None = None

    @property
    def speaks(self) -> bool:
        """Whether the answer is to be spoken."""
        return "audio" in (self.modalities or ())

    def check(self, most_messages: int) -> None:
        """Refuse what a system cannot do and what would change the answer if it were ignored."""
        wrong = {
            "n": self.n not in (None, 1) and "one answer is given to a question",
            "tools": bool(self.tools) and "the systems call no tools",
            "functions": bool(self.functions) and "the systems call no functions",
            "logprobs": bool(self.logprobs) and "log probabilities are not computed",
            "stop": bool(self.stop) and "answers end by themselves, stop sequences are not supported",
            "response_format": (self.response_format or ResponseFormat()).type != "text" and "only text is written",
            "messages": self._excess(most_messages),
        }
        for name, problem in wrong.items():
            if problem:
                raise bad_input(f"{name}: {problem}", name)
        if self.speaks:
            self._check_audio()

    def _excess(self, most_messages: int) -> str | None:
        """Return a message about too many messages or too much text; None = there is not too much."""
        if (count := len(self.messages)) > most_messages:
            return f"{count} messages, at most {most_messages}"
        characters = sum(len(message.text) for message in self.messages)
        return f"{characters} characters of text, at most {MOST_CHARACTERS}" if characters > MOST_CHARACTERS else None

    def _check_audio(self) -> None:
        if self.audio is None:
            raise bad_input("audio: its format is wanted, since the modalities have audio", "audio")
        given = self.audio.format
        if given not in _WRITTEN_AS:
            choices = ", ".join(_WRITTEN_AS)
            raise bad_input(f"audio.format: {given!r} cannot be written (choices: {choices})", "audio.format")
        if self.stream and given != PCM:
            raise bad_input(f"audio.format: {given!r} cannot be streamed (choices: {PCM})", "audio.format")


@router.post(
    "/chat/completions",
    response_class=Response,
    responses={200: {"model": ChatCompletion, "content": {sse.MEDIA_TYPE: sse.described(EVENTS, done=True)}}},
)
async def completions(body: ChatRequest, http: Request, serving: Served, spoken: Spoken) -> Response:
    """Answer the last question of a dialog with text, or with text and speech.

    Each answered turn before it is remembered as text; earlier recordings are transcribed for that.
    """
    name = serving.name_of(body.model)
    body.check(serving.settings.max_items)
    turns, asked = read_dialog(body.messages, spoken.text)
    submit = await unless_gone(http, _prepared(serving, serving.systems[name], body, turns, asked))
    answer = MeasuredAnswer(serving, "chat", serving.systems[name], submit)
    completion = Completion(name)
    if body.stream:
        await answer.begin(http)
        chunks = _spoken_chunks(answer, completion, spoken) if body.speaks else _written_chunks(answer, completion)
        usage = body.stream_options is not None and body.stream_options.include_usage
        return Streamed(sse.events(_with_end(chunks, answer, completion, usage), sse.DONE), answer, sse.MEDIA_TYPE)
    whole = await answer.whole(http)
    message: dict[str, Any] = {"content": whole.text}
    if body.speaks:
        written_as = _WRITTEN_AS[body.audio.format]
        data = await bridge.in_thread(encoded, whole.wav.numpy(), answer.rate, written_as)
        message = {"audio": _audio(spoken, whole.text, data)}
    found = completion.whole(message, answer.end, completion_usage(answer.request.counts))
    return JSONResponse(found.as_dict())


async def _prepared(
    serving: Serving, omni: Omni, body: ChatRequest, turns: list[Exchanged], asked: Asked
) -> Callable[[], generate.Request]:
    """Return a function that submits the question, after all recordings were decoded and earlier ones transcribed."""
    if sum(each.audio is not None for each in (asked, *(turn.asked for turn in turns))) > MOST_RECORDINGS:
        raise bad_input(f"messages: at most {MOST_RECORDINGS} recordings", "messages")
    question = await as_question(serving, omni, asked)
    steps = body.max_completion_tokens or body.max_tokens
    with blames("temperature"):
        decoding = decoding_for(serving, omni, temperature=body.temperature, top_p=body.top_p, max_steps=steps)
    options = {"decoding": decoding, "sound": EXACT if body.speaks else None}
    options["seed"] = None if body.seed is None else body.seed % (SEED.high + 1)
    if turns:
        options["history"] = await as_history(serving, omni, turns, decoding_for(serving, omni))
    task = TASKS[TASK_OF[asked.audio is not None, body.speaks]]
    return lambda: omni.decoder.submit(task, question, **options)


def _audio(spoken: SpokenAnswers, text: str, data: bytes) -> ChatCompletionAudio:
    """Return the audio of a whole answer as it stands in a message."""
    audio_id = spoken.new_id()
    encoded_data, expires = base64.b64encode(data).decode(), spoken.store(audio_id, text)
    return ChatCompletionAudio(id=audio_id, data=encoded_data, expires_at=expires, transcript=text)


async def _written_chunks(
    answer: MeasuredAnswer, completion: Completion
) -> AsyncGenerator[ChatCompletionChunk, None]:
    yield completion.chunk(ChatCompletionDelta(role="assistant", content="", refusal=None))
    async for chunk in answer:
        if chunk.text:
            yield completion.chunk(ChatCompletionDelta(content=chunk.text))


async def _spoken_chunks(
    answer: MeasuredAnswer, completion: Completion, spoken: SpokenAnswers
) -> AsyncGenerator[ChatCompletionChunk, None]:
    """Yield the chunks of a spoken answer: its id once, since clients join equal keys, then transcript and samples."""
    audio_id, texts, writer = spoken.new_id(), [], open_writer("pcm", answer.rate)
    first = ChatCompletionAudioDelta(id=audio_id, transcript="")
    yield completion.chunk(ChatCompletionDelta(role="assistant", refusal=None, audio=first))
    async for chunk in answer:
        if chunk.text:
            texts.append(chunk.text)
            yield _audio_chunk(completion, transcript=chunk.text)
        if data := writer.push(chunk.wav.numpy()):
            yield _audio_chunk(completion, data=base64.b64encode(data).decode())
    if data := writer.finish():
        yield _audio_chunk(completion, data=base64.b64encode(data).decode())
    yield _audio_chunk(completion, expires_at=spoken.store(audio_id, "".join(texts)))


def _audio_chunk(completion: Completion, **fields: str | int) -> ChatCompletionChunk:
    return completion.chunk(ChatCompletionDelta(audio=ChatCompletionAudioDelta(**fields)))


async def _with_end(
    chunks: AsyncGenerator[ChatCompletionChunk, None], answer: MeasuredAnswer, completion: Completion, usage: bool
) -> AsyncGenerator[ChatCompletionChunk, None]:
    """Yield chunks, and after them the reason for the end and, if it is wanted, the usage."""
    async for chunk in chunks:
        yield chunk
    yield completion.chunk(ChatCompletionDelta(), finish_reason(answer.end))
    if usage:
        yield completion.usage(completion_usage(answer.request.counts))
