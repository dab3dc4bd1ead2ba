"""The bridge between the event loop of the server and the threads that decode answers and files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from omnikit.generate import Chunk, Request

Result = TypeVar("Result")
THREADS = 4
"""Number of threads of each pool."""
FILES = ThreadPoolExecutor(THREADS, thread_name_prefix="omnikit-files")
"""Threads that decode and encode sound files of REST requests, which may take seconds."""
QUESTIONS = ThreadPoolExecutor(THREADS, thread_name_prefix="omnikit-questions")
"""Threads that submit questions of Realtime sessions and edit their conversations, for which somebody waits."""


def chunks(request: Request) -> AnswerChunks:
    """Return an asynchronous iterator over the chunks of a growing answer; call it in the event loop.

    No thread waits for the answer. The request is cancelled when the iterator is closed (`aclose`) or dropped, or when
    a task is cancelled while it waits for the next chunk. The last chunk says why the answer ended.

    Raises:
        Exception: the error that ended the answer, raised by the iterator.
    """
    return AnswerChunks(request)


class AnswerChunks:
    """An asynchronous iterator over the chunks of a growing answer, see `chunks`."""

    def __init__(self, request: Request):
        self._request: Request | None = request
        self._wake = asyncio.Event()
        request.subscribe(_waking(asyncio.get_running_loop(), self._wake))

    def __aiter__(self) -> AnswerChunks:
        return self

    async def __anext__(self) -> Chunk:
        try:
            return await self._next()
        except BaseException:  # a cancelled task among them
            self.cancel()
            raise

    async def _next(self) -> Chunk:
        if self._request is None:
            raise StopAsyncIteration
        self._wake.clear()  # before the look at the queue, so that no call is missed in between
        while (chunk := self._request.next_chunk()) is None:
            await self._wake.wait()
            self._wake.clear()
        if chunk.end is not None:
            self._request = None
        return chunk

    def cancel(self) -> None:
        """Cancel the request unless it has ended, and end the iteration."""
        request, self._request = self._request, None
        if request is not None:
            request.cancel()

    async def aclose(self) -> None:
        """Cancel the request like `cancel`, as `contextlib.aclosing` expects it."""
        self.cancel()

    def __del__(self) -> None:
        self.cancel()


def _waking(loop: asyncio.AbstractEventLoop, wake: asyncio.Event) -> Callable[[], None]:
    """Return a callback for other threads that sets an event of a loop, unless the loop has been closed."""

    def call() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(wake.set)

    return call


async def in_thread(function: Callable[..., Result], *args: object, pool: ThreadPoolExecutor = FILES) -> Result:
    """Return `function(*args)`, called in a thread of a pool, so that the event loop goes on meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(pool, function, *args)
