"""REST calls as OpenAI's clients use them, and the published server's `/chat`."""

from fastapi import APIRouter

router = APIRouter()
