"""REST calls as OpenAI's clients use them, and the published server's `/chat`."""

from __future__ import annotations

from fastapi import APIRouter

from omnikit.serve.rest import chat, chat_published, models, speech, transcriptions
from omnikit.serve.rest.errors import ErrorBody

router = APIRouter(responses={"default": {"model": ErrorBody, "description": "An error, in OpenAI's form."}})
for each in (chat, models, speech, transcriptions):
    router.include_router(each.router, prefix="/v1", tags=["OpenAI"])
router.include_router(chat_published.router, tags=["Mini-Omni"])
EVENTS = (*chat.EVENTS, *speech.EVENTS, *transcriptions.EVENTS)
"""Bodies of the server-sent events of all REST calls, errors excepted."""
