"""Generation by request: questions join and leave a running batch that is decoded step by step.

    types          decoding options, questions, answers, chunks
    prompts        checks questions, encodes recordings, embeds prompts
    request        one question and its growing answer
    token_rules    which token each stream emits and when an answer ends, for all slots at once
    detokenize     emitted tokens -> text and codes, of whole and of growing answers
    sound_decoder  codes of growing answers -> waveforms, decoded together
    running_batch  admits requests, decodes steps, hands out tokens, releases slots
    runner         the thread that steps a running batch
    decoder        model, engine, strategy and decoding options in one object
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
