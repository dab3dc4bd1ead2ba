"""The bodies of chat completions, whole and in chunks."""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

from pydantic import Field

from omnikit.generate import END
from omnikit.serve.rest.response_bodies import Body
from omnikit.serve.rest.usage import CompletionUsage

FinishReason = Literal["stop", "length"]


class ChatCompletionAudio(Body):
    """The `audio` of a message in a chat completion: the speech of the answer and its transcript."""

    id: str = Field(description="Name by which later messages refer to the answer.")
    data: str = Field(description="Base64 of a file in the format that was asked for.")
    expires_at: int = Field(description="Time in seconds since 1970 at which the id is forgotten.")
    transcript: str


class ChatCompletionMessage(Body):
    """The `message` of a chat completion: an answer as text in `content`, or as text and speech in `audio`."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: list[dict[str, Any]]
    audio: ChatCompletionAudio | None = None


class ChatCompletionChoice(Body):
    """The only element of `choices` in a chat completion: the answer, and the reason for its end."""

    index: int
    message: ChatCompletionMessage
    logprobs: None
    finish_reason: FinishReason


class ChatCompletion(Body):
    """The body of a chat completion that is not streamed."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionChoice]
    usage: CompletionUsage


class ChatCompletionAudioDelta(Body):
    """The `audio` of a chunk of a streamed chat completion; clients join the transcripts, and the decoded data."""

    id: str | None = None
    data: str | None = Field(None, description="Base64 of signed 16 bit little-endian samples, mono, 24 kHz.")
    expires_at: int | None = None
    transcript: str | None = None


class ChatCompletionDelta(Body):
    """The `delta` of a chunk of a streamed chat completion: a part of the answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    audio: ChatCompletionAudioDelta | None = None


class ChatCompletionChunkChoice(Body):
    """The only element of `choices` in a chunk of a chat completion; the last chunk has the reason for the end."""

    index: int
    delta: ChatCompletionDelta
    logprobs: None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Body):
    """A chunk of a streamed chat completion; that with the usage, which some clients ask for, has no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatCompletionChunkChoice]
    usage: CompletionUsage | None = None


class Completion:
    """The fields that all chunks of a chat completion have in common.

    Args:
        model: name of the system that answers.
    """

    def __init__(self, model: str):
        self._common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, message: dict[str, Any], end: str | None, usage: CompletionUsage) -> ChatCompletion:
        """Return the body of a whole completion.

        Args:
            message: `content` or `audio` of the answer.
            end: reason why the answer ended, one of `omnikit.generate.ENDS`.
            usage: numbers of tokens.
        """
        fields = {"role": "assistant", "content": None, "refusal": None, "annotations": [], **message}
        said = ChatCompletionMessage(**fields)
        choice = ChatCompletionChoice(index=0, message=said, logprobs=None, finish_reason=finish_reason(end))
        return ChatCompletion(**self._common, object="chat.completion", choices=[choice], usage=usage)

    def chunk(self, delta: ChatCompletionDelta, finish: FinishReason | None = None) -> ChatCompletionChunk:
        """Return a chunk with a part of the answer."""
        choice = ChatCompletionChunkChoice(index=0, delta=delta, logprobs=None, finish_reason=finish)
        return self._chunk(choices=[choice])

    def usage(self, usage: CompletionUsage) -> ChatCompletionChunk:
        """Return the chunk without a part of the answer that ends a stream whose client asked for its usage."""
        return self._chunk(choices=[], usage=usage)

    def _chunk(self, **fields: Any) -> ChatCompletionChunk:
        return ChatCompletionChunk(**self._common, object="chat.completion.chunk", **fields)


def finish_reason(end: str | None) -> FinishReason:
    """Return OpenAI's name for the reason why an answer ended: `stop`, or `length` for all limits."""
    return "stop" if end == END else "length"
