"""Generation by request: answers join and leave a running batch.

    records     how to decode, what is asked, what was answered
    prompts     questions -> embeddings of their prompts
    request     one question and its growing answer
    rules       which token each stream emits and when an answer ends, for all slots at once
    frames      emitted tokens -> text and codes, of whole answers and while they grow
    sound       codes of growing answers -> sound, decoded together
    loop        the running batch: admit, step, hand out, release
    runner      the thread that steps it
    decoder     model, engine, strategy and decoding in one object
"""

from __future__ import annotations

from omnikit.generate.decoder import Decoder
from omnikit.generate.detokenize import read_frames
from omnikit.generate.request import Request
from omnikit.generate.running_batch import QueueFull, RunningBatch
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
)

__all__ = [
    "CANCELLED", "END", "ENDS", "STEP_LIMIT", "TIME_LIMIT", "Answer", "BadQuestion", "Chunk", "Decoder", "Decoding",
    "Question", "QueueFull", "Request", "RunningBatch", "read_frames",
]  # fmt: skip
