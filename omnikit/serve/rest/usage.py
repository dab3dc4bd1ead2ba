"""Numbers of tokens in the forms in which OpenAI's clients expect them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnikit.generate.types import TokenCounts


def tokens(counts: TokenCounts) -> dict[str, int]:
    """Return the numbers of positions of a question, earlier turns included, and of tokens of its answer."""
    given, emitted = counts.history + counts.prompt, counts.text + counts.frames
    return {"input_tokens": given, "output_tokens": emitted, "total_tokens": given + emitted}



def transcription_usage(counts: TokenCounts) -> dict[str, Any]:
    """Return the usage of a transcription, all of whose input is audio but the marks of the prompt."""
    audio = counts.spoken
    return {
        "type": "tokens",
        **tokens(counts),
        "input_token_details": {"audio_tokens": audio, "text_tokens": counts.prompt - audio},
    }


def completion_usage(counts: TokenCounts) -> dict[str, Any]:
    """Return the usage of a chat completion; earlier turns count as text, audio tokens of the answer as frames."""
    found = tokens(counts)
    given, emitted, audio = found["input_tokens"], found["output_tokens"], counts.spoken
    return {
        "prompt_tokens": given,
        "completion_tokens": emitted,
        "total_tokens": given + emitted,
        "prompt_tokens_details": {
            "cached_tokens": counts.cached, "audio_tokens": audio, "text_tokens": given - audio,
        },
        "completion_tokens_details": {
            "audio_tokens": counts.frames, "text_tokens": counts.text, "reasoning_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
        },
    }  # fmt: skip
