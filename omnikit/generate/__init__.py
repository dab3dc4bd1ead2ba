"""Generation by request: questions join and leave a running batch that is decoded step by step.

docs/step.md says what is in which file.
"""

from __future__ import annotations

from omnikit.generate.decoder import Decoder
from omnikit.generate.detokenize import read_frames
from omnikit.generate.history import History, UnknownTurn
from omnikit.generate.request import Request
from omnikit.generate.running_batch import RunningBatch
from omnikit.generate.types import (
    CANCELLED,
    END,
    ENDS,
    STEP_LIMIT,
    TIME_LIMIT,
    Answer,
    BadQuestion,
    Chunk,
    Decoding,
    Question,
    TokenCounts,
)
from omnikit.generate.waiting import QueueFull

__all__ = [
    "CANCELLED",
    "END",
    "ENDS",
    "STEP_LIMIT",
    "TIME_LIMIT",
    "Answer",
    "BadQuestion",
    "Chunk",
    "Decoder",
    "Decoding",
    "History",
    "Question",
    "QueueFull",
    "Request",
    "RunningBatch",
    "TokenCounts",
    "UnknownTurn",
    "read_frames",
]  # fmt: skip
