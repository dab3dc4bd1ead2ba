"""The answered turns of a dialog as the history that the next question continues."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence

from omnikit.api import Omni
from omnikit.generate import Decoding, History, Question
from omnikit.serve import bridge
from omnikit.serve.rest.dialogs import Asked, Exchanged
from omnikit.serve.rest.errors import blames
from omnikit.serve.rest.recordings import decode, from_base64
from omnikit.serve.serving import Serving
from omnikit.tasks import TASKS


async def as_question(serving: Serving, omni: Omni, asked: Asked) -> Question:
    """Return a question of a dialog as a question to a system; a recording is decoded.

    Raises:
        Refusal: the recording or the text cannot be used.
    """
    with blames(asked.param):
        if asked.audio is None:
            return omni.written_question(asked.text)
        return await bridge.in_thread(_spoken, serving, omni, asked)


def _spoken(serving: Serving, omni: Omni, asked: Asked) -> Question:
    data = from_base64(asked.audio.data, asked.param)
    return decode(data, asked.param, serving, omni).question(omni)


async def as_history(serving: Serving, omni: Omni, turns: Sequence[Exchanged], decoding: Decoding) -> History:
    """Return answered turns as a history of written turns; recordings are transcribed for that.

    A turn in whose recording no word is recognised is left out.

    Args:
        serving: systems and settings of the server.
        omni: system that answers.
        turns: turns in the order in which they were said.
        decoding: decoding options of the transcriptions.

    Raises:
        Refusal: the engine cannot continue a sequence, or a turn cannot be used.
        QueueFull: too many questions are waiting.
    """
    with blames("messages"):
        if not omni.decoder.engine.parks:
            raise ValueError(f"messages: engine {omni.decoder.engine.name} cannot continue a dialog; send one question")
    texts = await _all_or_none([_text(serving, omni, turn.asked, decoding) for turn in turns])
    history = History(omni.model)
    for turn, text in zip(turns, texts, strict=True):
        with blames(turn.asked.param):
            if text:
                answer = omni.model.llm.tokenizer.encode(turn.answer)
                history.remember(None, text, omni.written_question(text).text, answer)
    return history


async def _all_or_none(works: Sequence[Coroutine[None, None, str]]) -> list[str]:
    """Return the results of some work done at the same time; the first error ends all of it."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:  # `gather` lets the others go on after an error
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _text(serving: Serving, omni: Omni, asked: Asked, decoding: Decoding) -> str:
    if asked.audio is None:
        return asked.text
    question = await as_question(serving, omni, asked)
    chunks = bridge.chunks(omni.decoder.submit(TASKS["A1T1"], question, decoding=decoding))
    return "".join([chunk.text async for chunk in chunks])
