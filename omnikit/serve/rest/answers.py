"""Answers on their way to HTTP clients: measured, sent whole or while they grow, cancelled when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

import torch
from fastapi import Depends, Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from torch import Tensor

from omnikit import generate
from omnikit.api import Omni
from omnikit.generate import CANCELLED, Chunk, Decoding
from omnikit.serve import bridge
from omnikit.serve.serving import Serving, steps_of

Result = TypeVar("Result")


def serving_of(request: Request) -> Serving:
    """Return the systems and settings of the app that a request was sent to."""
    return request.app.state.serving


Served = Annotated[Serving, Depends(serving_of)]


def decoding_for(
    serving: Serving,
    omni: Omni,
    *,
    temperature: float | None = None,
    top_p: float | None = None,
    max_steps: int | None = None,
) -> Decoding:
    """Return the decoding options of a request: those of the system within the server's limits.

    Args:
        serving: systems and settings of the server.
        omni: system that answers.
        temperature: temperature of the text stream; None = that of the system.
        top_p: probability mass of the ids that the text stream samples from; None = that of the system.
        max_steps: maximum number of decode steps if it is below that of the system; None = that of the system.

    Raises:
        ValueError: a value that cannot be sampled with.
    """
    own = omni.decoding
    given = {"temperature": temperature, "top_p": top_p}
    text = replace(own.text, **{name: value for name, value in given.items() if value is not None})
    seconds = serving.settings.request_seconds
    limit = seconds if own.time_limit is None else min(own.time_limit, seconds)
    return replace(own, text=text, time_limit=limit, max_steps=steps_of(omni, max_steps))


async def unless_gone(http: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of some work for a client, whose request's body has been read; cancel it if the client leaves.

    Raises:
        ClientDisconnect: the client has left.
    """
    done, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait((done, gone), return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise ClientDisconnect
        return done.result()
    finally:
        done.cancel()
        gone.cancel()
        await asyncio.gather(done, gone, return_exceptions=True)


async def _left(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True)
class Whole:
    """A whole answer: its text and its waveform [N] in -1..1; N = 0 where it is text only."""

    text: str
    wav: Tensor


class MeasuredAnswer:
    """An asynchronous iterator over the chunks of an answer, measured from the submission of its question to its end.

    Whoever makes one closes it, which cancels the request unless it has ended.

    Args:
        serving: systems and settings of the server.
        kind: a name in `omnikit.serve.metrics.KINDS`.
        omni: system that answers.
        submit: function that submits the question and returns its request.

    Raises:
        QueueFull: too many questions are waiting.
    """

    def __init__(self, serving: Serving, kind: str, omni: Omni, submit: Callable[[], generate.Request]):
        self.rate = omni.sample_rate
        self.end: str | None = None
        """Reason why the answer ended, one of `omnikit.generate.ENDS`; None before its end."""
        self._first: Chunk | None = None
        with ExitStack() as stack:
            self._meter = stack.enter_context(serving.metrics.answer(kind))
            self.request = submit()
            self._chunks = bridge.chunks(self.request)
            self._measured = stack.pop_all()

    async def begin(self, http: Request) -> None:
        """Wait for the first chunk, so that an error of the question is reported before anything is sent.

        Raises:
            ClientDisconnect: the client has left.
            BadQuestion: the question cannot be asked.
        """
        try:
            self._first = await unless_gone(http, anext(self))
        except BaseException:
            self.close()
            raise

    async def whole(self, http: Request) -> Whole:
        """Wait for the whole answer, and close it.

        Raises:
            ClientDisconnect: the client has left.
            BadQuestion: the question cannot be asked.
        """
        try:
            chunks = await unless_gone(http, self._all())
        finally:
            self.close()
        return Whole("".join(chunk.text for chunk in chunks), torch.cat([chunk.wav for chunk in chunks]))

    async def _all(self) -> list[Chunk]:
        return [chunk async for chunk in self]

    def __aiter__(self) -> MeasuredAnswer:
        return self

    async def __anext__(self) -> Chunk:
        first, self._first = self._first, None
        if first is not None:
            return first
        try:
            chunk = await anext(self._chunks)
        except Exception as error:
            if not isinstance(error, StopAsyncIteration):
                self._measured.pop_all().__exit__(type(error), error, error.__traceback__)
            raise
        self._meter.chunk(chunk.wav, self.rate or 1)
        if chunk.end is not None:
            self.end = self._meter.end = chunk.end
        return chunk

    def close(self) -> None:
        """Cancel the request unless it has ended, and finish the measurement; a second call does nothing."""
        self.request.cancel()
        if self.end is None:
            self._meter.end = CANCELLED
        self._measured.close()


class Streamed(StreamingResponse):
    """A response whose body is sent while an answer is generated; the answer is closed when the response ends.

    Args:
        content: body.
        answer: answer that it is made from.
        media_type: MIME type of the body.
    """

    def __init__(self, content: AsyncGenerator[bytes, None], answer: MeasuredAnswer, media_type: str):
        super().__init__(content, media_type=media_type, headers={"Cache-Control": "no-cache"})
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.close()
            await self.body_iterator.aclose()
