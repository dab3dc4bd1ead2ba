"""A stand-in for `Request.subscribe` and `Request.next_chunk`, to be deleted once requests have them."""

from __future__ import annotations

import asyncio
from queue import Empty

import torch

from omnikit.generate import Chunk
from omnikit.generate.detokenize import TextReader


class Polled:
    """A request whose queue is looked at every few milliseconds."""

    def __init__(self, request):
        self.request, self.text = request, TextReader(request.model)

    def subscribe(self, callback) -> None:
        async def poll() -> None:
            while not self.request.done:
                callback()
                await asyncio.sleep(0.005)
            callback()

        self.task = asyncio.get_running_loop().create_task(poll())

    def next_chunk(self) -> Chunk | None:
        try:
            found = self.request.chunks.get_nowait()
        except Empty:
            return None
        if found is not None:
            tokens, wav = found
            return Chunk("".join(map(self.text.push, tokens)), torch.zeros(0) if wav is None else wav)
        self.request.check()
        return Chunk(self.text.finish(), torch.zeros(0), self.request.end)

    def cancel(self) -> None:
        self.request.cancel()
