"""The WebSocket of the Realtime protocol."""

from fastapi import APIRouter

router = APIRouter()
