"""Test the bridge: chunks of an answer in the event loop equal those of an iterator, and nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing

import pytest
import torch

from omnikit.audio.io import load_audio
from omnikit.generate import CANCELLED, BadQuestion, Question
from omnikit.serve import bridge
from tests.serve.conftest import QUESTION


@pytest.fixture
def question(omni) -> Question:
    return omni.spoken_question(load_audio(QUESTION, omni.model.encoder.sample_rate))


async def everything(request) -> list:
    return [chunk async for chunk in bridge.chunks(request)]


def test_chunks_are_those_of_the_iterator(omni, question):
    wanted = omni.ask(QUESTION)

    async def ask_many():
        requests = [omni.submit("A1A2", question, sound="exact") for _ in range(4)]
        return await asyncio.gather(*map(everything, requests))

    before = threading.active_count()
    for found in asyncio.run(ask_many()):
        assert "".join(chunk.text for chunk in found) == wanted.text
        assert torch.allclose(torch.cat([chunk.wav for chunk in found]), wanted.wav, atol=1e-4)
        assert [chunk.end for chunk in found[:-1]] == [None] * (len(found) - 1)
        assert found[-1].end == wanted.end
    assert threading.active_count() <= before + 1  # the decoding thread alone


def test_an_answer_that_ended_before_is_read_whole(omni, question):
    request = omni.submit("A1T2", question)
    answer = request.wait()
    found = asyncio.run(everything(request))
    assert "".join(chunk.text for chunk in found) == omni.model.llm.tokenizer.decode(answer.text)


@pytest.mark.parametrize("how", ["close", "drop", "cancel"])
def test_whoever_stops_reading_cancels_the_answer(omni, question, how):
    async def first(request):
        async with aclosing(bridge.chunks(request)) as chunks:
            return await anext(chunks)

    async def ask():
        request = omni.submit("A1A2", question, sound="exact")
        if how == "close":
            await first(request)
        elif how == "drop":
            await anext(bridge.chunks(request))
        else:
            task = asyncio.create_task(everything(request))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return request

    async def run():
        request = await ask()
        return await asyncio.to_thread(request.wait, 10)

    assert asyncio.run(run()).end == CANCELLED


def test_errors_arrive_as_they_are(omni):
    async def ask():
        return await everything(omni.submit("A1A2", Question(wav=torch.zeros(0)), sound="exact"))

    with pytest.raises(BadQuestion):
        asyncio.run(ask())


def test_files_are_decoded_in_few_threads():
    async def run():
        return await asyncio.gather(*(bridge.in_thread(threading.get_ident) for _ in range(40)))

    assert len(set(asyncio.run(run()))) <= bridge.THREADS
