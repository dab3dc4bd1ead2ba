"""Numbers of tokens in the forms in which OpenAI's clients expect them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from omnikit.serve.rest.response_bodies import Body

if TYPE_CHECKING:
    from omnikit.generate.types import TokenCounts


class TokenUsage(Body):
    """Numbers of prompt positions of a request, earlier turns included, and of tokens of the answer."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class InputTokenDetails(Body):
    """Numbers of prompt positions of a transcription that are audio, and that are text."""

    audio_tokens: int
    text_tokens: int


class TranscriptionUsage(TokenUsage):
    """The `usage` of a transcription: numbers of prompt positions, in all and by kind, and of transcript tokens."""

    type: Literal["tokens"]
    input_token_details: InputTokenDetails


class PromptTokensDetails(Body):
    """Numbers of prompt positions of a chat completion by kind; earlier turns count as text."""

    cached_tokens: int
    audio_tokens: int
    text_tokens: int


class CompletionTokensDetails(Body):
    """Numbers of tokens of a chat completion's answer by kind; audio tokens are frames of its speech."""

    audio_tokens: int
    text_tokens: int
    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class CompletionUsage(Body):
    """The `usage` of a chat completion: numbers of prompt positions and of answer tokens, in all and by kind."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


def token_usage(counts: TokenCounts) -> TokenUsage:
    """Return the numbers of positions of a question, earlier turns included, and of tokens of its answer."""
    given, emitted = counts.history + counts.prompt, counts.text + counts.frames
    return TokenUsage(input_tokens=given, output_tokens=emitted, total_tokens=given + emitted)


def transcription_usage(counts: TokenCounts) -> TranscriptionUsage:
    """Return the usage of a transcription, all of whose input is audio but the marks of the prompt."""
    audio = counts.spoken
    details = InputTokenDetails(audio_tokens=audio, text_tokens=counts.prompt - audio)
    return TranscriptionUsage(type="tokens", **token_usage(counts).as_dict(), input_token_details=details)


def completion_usage(counts: TokenCounts) -> CompletionUsage:
    """Return the usage of a chat completion; earlier turns count as text, audio tokens of the answer as frames."""
    found, audio = token_usage(counts), counts.spoken
    return CompletionUsage(
        prompt_tokens=found.input_tokens,
        completion_tokens=found.output_tokens,
        total_tokens=found.total_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=counts.cached, audio_tokens=audio, text_tokens=found.input_tokens - audio
        ),
        completion_tokens_details=CompletionTokensDetails(
            audio_tokens=counts.frames, text_tokens=counts.text, reasoning_tokens=0,
            accepted_prediction_tokens=0, rejected_prediction_tokens=0,
        ),
    )  # fmt: skip
