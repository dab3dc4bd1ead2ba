"""One response of a Realtime session: the events from `response.created` to `response.done`, in their order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from omnikit.serve.audio_formats import OutputAudio
from omnikit.serve.realtime.actions import Usage
from omnikit.serve.realtime.events import encode_audio
from omnikit.serve.realtime.items import Item, ItemContent

Event = dict[str, Any]
END, CANCELLED = "end", "cancelled"
"""Two of `omnikit.generate.ENDS`, which cannot be imported without torch."""
TURN_DETECTED, CLIENT_CANCELLED = "turn_detected", "client_cancelled"
"""Reasons for which a response is cancelled."""


@dataclass(frozen=True)
class ResponseConfig:
    """The settings of a response, the session's and its own."""

    output_modalities: list[str]
    output: dict[str, Any]
    """Format and voice."""
    max_output_tokens: int | str
    metadata: dict[str, str] | None

    @property
    def speaks(self) -> bool:
        """Whether the answer has speech."""
        return self.output_modalities == ["audio"]


@dataclass
class Response:
    """A response that has not ended.

    Args:
        id: its id.
        item: the answer's item, which is added to the conversation with the first chunk.
        config: its settings.
        conversation_id: id of the conversation that the answer is added to; None = none.
        remembered: whether the system remembers the turn.
        out_rate: sample rate of the chunks in Hz.
    """

    id: str
    item: Item
    config: ResponseConfig
    conversation_id: str | None
    remembered: bool
    out_rate: int
    question: list[Item] = field(default_factory=list)
    """Items of the conversation that it answers."""
    cancelled_by: str | None = None
    """Reason for which it is being cancelled; None = it is not."""
    opened: bool = False
    """Whether its item was added."""
    text: str = ""

    def __post_init__(self) -> None:
        form = self.config.output["format"]["type"]
        self._encoder = OutputAudio(form, self.out_rate) if self.config.speaks else None
        self._bytes_per_ms = 48 if form == "audio/pcm" else 8
        self.item.sent_ms = 0.0 if self.config.speaks else None

    def created(self) -> Event:
        """Return the event `response.created`."""
        return {"type": "response.created", "response": self._shown("in_progress", None, [], None)}

    def open(self, previous: str | None) -> Iterator[Event]:
        """Yield the events that announce the answer's item.

        Args:
            previous: id of the item before it in the conversation.
        """
        self.opened, self.item.status = True, "in_progress"
        yield {"type": "response.output_item.added", **self._place, "item": self.item.shown()}
        if self.conversation_id is not None:
            yield {"type": "conversation.item.added", "previous_item_id": previous, "item": self.item.shown()}
        self.item.content.append(
            ItemContent("output_audio", transcript="") if self.config.speaks else ItemContent("output_text", text="")
        )
        yield {"type": "response.content_part.added", **self._part_place, "part": self._part("")}

    def chunk(self, text: str, samples: np.ndarray) -> Iterator[Event]:
        """Yield the events of a chunk of the answer.

        Args:
            text: further text.
            samples: further samples [n] (float32).
        """
        if text:
            self.text += text
            self._note_text()
            name = "output_audio_transcript" if self.config.speaks else "output_text"
            yield {"type": f"response.{name}.delta", **self._part_place, "delta": text}
        if self._encoder is not None and len(samples):
            yield from self._audio(self._encoder.push(samples))

    def rest(self) -> Iterator[Event]:
        """Yield the event of the samples that the encoder has held back."""
        if self._encoder is not None:
            yield from self._audio(self._encoder.finish())

    def close(self, previous: str | None, *, whole: bool) -> Iterator[Event]:
        """Yield the events that end the answer's item.

        Args:
            previous: id of the item before it in the conversation.
            whole: whether the answer is complete.
        """
        if self.config.speaks:
            yield {"type": "response.output_audio.done", **self._part_place}
            yield {"type": "response.output_audio_transcript.done", **self._part_place, "transcript": self.text}
        else:
            yield {"type": "response.output_text.done", **self._part_place, "text": self.text}
        yield {"type": "response.content_part.done", **self._part_place, "part": self._part(self.text)}
        self.item.status = "completed" if whole else "incomplete"
        yield {"type": "response.output_item.done", **self._place, "item": self.item.shown()}
        if self.conversation_id is not None:
            yield {"type": "conversation.item.done", "previous_item_id": previous, "item": self.item.shown()}

    def done(self, status: str, details: Event | None, usage: Usage) -> Event:
        """Return the event `response.done`.

        Args:
            status: how it ended: `completed`, `cancelled`, `incomplete` or `failed`.
            details: reason or error, see `ended`.
            usage: number of its tokens.
        """
        output = [self.item.shown()] if self.opened else []
        return {"type": "response.done", "response": self._shown(status, details, output, usage_shown(usage))}

    def ended(self, end: str) -> tuple[str, Event | None]:
        """Return status and details for the reason why the answer ended, one of `omnikit.generate.ENDS`."""
        if self.cancelled_by is not None or end == CANCELLED:
            reason = {"reason": self.cancelled_by} if self.cancelled_by else {}
            return "cancelled", {"type": "cancelled", **reason}
        if end == END:
            return "completed", None
        return "incomplete", {"type": "incomplete", "reason": "max_output_tokens"}

    def _audio(self, data: bytes) -> Iterator[Event]:
        if data:
            self.item.sent_ms += len(data) / self._bytes_per_ms
            yield {"type": "response.output_audio.delta", **self._part_place, "delta": encode_audio(data)}

    def _note_text(self) -> None:
        part = self.item.content[0]
        if part.type == "output_text":
            part.text = self.text
        else:
            part.transcript = self.text

    @property
    def _place(self) -> Event:
        return {"response_id": self.id, "output_index": 0}

    @property
    def _part_place(self) -> Event:
        return {**self._place, "item_id": self.item.id, "content_index": 0}

    def _part(self, text: str) -> Event:
        return {"type": "audio", "transcript": text} if self.config.speaks else {"type": "text", "text": text}

    def _shown(self, status: str, details: Event | None, output: list[Event], usage: Event | None) -> Event:
        return {
            "object": "realtime.response", "id": self.id, "status": status, "status_details": details,
            "output": output, "conversation_id": self.conversation_id,
            "output_modalities": list(self.config.output_modalities),
            "max_output_tokens": self.config.max_output_tokens, "audio": {"output": dict(self.config.output)},
            "usage": usage, "metadata": self.config.metadata,
        }  # fmt: skip


def usage_shown(usage: Usage) -> Event:
    """Return the `usage` of `response.done`."""
    given, emitted = usage.input_text + usage.input_audio, usage.output_text + usage.output_audio
    cached_text = min(usage.cached, usage.input_text)
    cached = {"text_tokens": cached_text, "audio_tokens": usage.cached - cached_text, "image_tokens": 0}
    return {
        "total_tokens": given + emitted,
        "input_tokens": given,
        "output_tokens": emitted,
        "input_token_details": {
            "text_tokens": usage.input_text, "audio_tokens": usage.input_audio, "image_tokens": 0,
            "cached_tokens": usage.cached, "cached_tokens_details": cached,
        },
        "output_token_details": {"text_tokens": usage.output_text, "audio_tokens": usage.output_audio},
    }  # fmt: skip
