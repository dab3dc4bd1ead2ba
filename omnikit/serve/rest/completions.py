"""The bodies of chat completions, whole and in chunks."""

from __future__ import annotations

import time
import uuid
from typing import Any

from omnikit.generate import END


class Completion:
    """The fields that all chunks of a chat completion have in common.

    Args:
        model: name of the system that answers.
    """

    def __init__(self, model: str):
        self._common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, message: dict[str, Any], end: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        """Return the body of a whole completion.

        Args:
            message: `content` or `audio` of the answer.
            end: reason why the answer ended, one of `omnikit.generate.ENDS`.
            usage: numbers of tokens.
        """
        said = {"role": "assistant", "content": None, "refusal": None, "annotations": [], **message}
        choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": finish_reason(end)}
        return {**self._common, "object": "chat.completion", "choices": [choice], "usage": usage}

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        """Return a chunk with a part of the answer."""
        return self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}])

    def usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Return the chunk without a part of the answer that ends a stream whose client asked for its usage."""
        return self._chunk([]) | {"usage": usage}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._common, "object": "chat.completion.chunk", "choices": choices}


def finish_reason(end: str | None) -> str:
    """Return OpenAI's name for the reason why an answer ended: `stop`, or `length` for all limits."""
    return "stop" if end == END else "length"
