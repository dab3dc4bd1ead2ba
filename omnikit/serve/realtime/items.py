"""The items of a Realtime conversation in their order: messages, function calls and outputs of functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from omnikit.serve.audio_formats import InputAudio, OutputAudio
from omnikit.serve.realtime.actions import RATE
from omnikit.serve.realtime.events import (
    MAX_AUDIO_BYTES,
    MAX_TEXT,
    ContentPart,
    ItemSettings,
    ProtocolError,
    decode_audio,
    encode_audio,
)
from omnikit.serve.realtime.input_buffer import restored, stored

WAITING, RETRY, SETTLED = "waiting", "retry", "settled"
"""States of an item: a question that the next response answers; one whose response failed, which is answered if no
other waits; any other item."""
KEPT_SECONDS = 120.0
"""Seconds of the user's last speech that are kept, to be answered and retrieved."""
ROOT = "root"
"""Previous item of the first item, for clients."""
_PARTS_OF = {
    "user": ("input_text", "input_audio"),
    "system": ("input_text",),
    "assistant": ("output_text", "output_audio"),
}


@dataclass(eq=False)
class ItemContent:
    """A part of the content of a message; audio is None where it has none or is not kept any more."""

    type: str
    text: str | None = None
    transcript: str | None = None
    audio: np.ndarray | None = None  # [n] int16 at RATE

    def shown(self, audio_format: str | None = None) -> dict[str, Any]:
        """Return the part as an event shows it, with the user's audio if its format is given."""
        if self.type.endswith("_text"):
            return {"type": self.type, "text": self.text or ""}
        found: dict[str, Any] = {"type": self.type}
        if self.type == "input_audio" or self.transcript is not None:
            found["transcript"] = self.transcript
        if audio_format is not None and self.audio is not None:
            encoder = OutputAudio(audio_format, RATE)
            found["audio"] = encode_audio(encoder.push(restored(self.audio)) + encoder.finish())
        return found

    @property
    def words(self) -> str:
        """Text of the part, written or transcribed."""
        return (self.text if self.type.endswith("_text") else self.transcript) or ""


@dataclass(eq=False)
class Item:
    """An item of the conversation."""

    id: str
    type: str = "message"
    role: str | None = None
    content: list[ItemContent] = field(default_factory=list)
    call: dict[str, str] = field(default_factory=dict)
    """Fields of a function call or its output."""
    status: str = "completed"
    state: str = SETTLED
    turn: str | None = None
    """Key of the remembered turn that the item is a part of."""
    sent_ms: float | None = None
    """Milliseconds of an answer's speech that the client has, less what was truncated; None = it has none."""
    cut_ms: int | None = None
    """Milliseconds of an answer's speech that the last `Crop` kept; None = the answer was never cropped."""

    def shown(self, audio_format: str | None = None) -> dict[str, Any]:
        """Return the item as an event shows it, with the user's audio if its format is given."""
        found = {"id": self.id, "object": "realtime.item", "type": self.type, "status": self.status}
        if self.type != "message":
            return {**found, **self.call}
        return {**found, "role": self.role, "content": [part.shown(audio_format) for part in self.content]}

    @property
    def samples(self) -> np.ndarray:
        """Speech [n] (int16) of a user's message."""
        found = [part.audio for part in self.content if part.audio is not None]
        return np.concatenate(found) if found else np.zeros(0, np.int16)

    @property
    def words(self) -> str:
        """Text of a message, written or transcribed."""
        return " ".join(words for part in self.content if (words := part.words.strip()))

    @property
    def spoken_part(self) -> int | None:
        """Index of the first part that is speech; None = there is none."""
        return next((index for index, part in enumerate(self.content) if part.type.endswith("_audio")), None)


class ConversationItems:
    """An ordered list of the items in the conversation of a Realtime session.

    Args:
        kept_seconds: seconds of the user's last speech that are kept.
    """

    def __init__(self, kept_seconds: float = KEPT_SECONDS):
        self._items: list[Item] = []
        self._kept = round(kept_seconds * RATE)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __contains__(self, item_id: str) -> bool:
        return any(item.id == item_id for item in self._items)

    def get(self, item_id: str, code: str) -> Item:
        """Return an item.

        Raises:
            ProtocolError: there is none with this id.
        """
        for item in self._items:
            if item.id == item_id:
                return item
        raise ProtocolError(code, f"The conversation has no item with the id {item_id[:80]!r}.", "item_id")

    @property
    def last_id(self) -> str | None:
        """Id of the last item; None = there is none."""
        return self._items[-1].id if self._items else None

    def previous(self, item: Item) -> str | None:
        """Return the id of the item before; None = it is the first."""
        at = self._items.index(item)
        return self._items[at - 1].id if at else None

    def before(self, item: Item) -> list[Item]:
        """Return all items before an item."""
        return self._items[: self._items.index(item)]

    def after(self, item: Item) -> list[Item]:
        """Return all items after an item."""
        return self._items[self._items.index(item) + 1 :]

    def add(self, item: Item, after: str | None = None) -> None:
        """Insert an item after the one with this id, at the beginning (`ROOT`) or at the end (None).

        Raises:
            ProtocolError: the id is unknown.
        """
        at = len(self._items)
        if after is not None:
            ids = [ROOT, *(known.id for known in self._items)]
            if after not in ids:
                text = f"The conversation has no item with the id {after[:80]!r}, after which to insert."
                raise ProtocolError("item_create_invalid_previous_item_id", text, "previous_item_id")
            at = ids.index(after)
        self._items.insert(at, item)
        self._forget_audio()

    def remove(self, item: Item) -> None:
        """Remove an item."""
        self._items.remove(item)

    def forget_turn(self, key: str) -> None:
        """Note that a turn is not remembered any more."""
        for item in self._items:
            if item.turn == key:
                item.turn = None

    def to_answer(self) -> list[Item]:
        """Return the user's items that the next response answers, in their order."""
        waiting = [item for item in self._items if item.state == WAITING]
        return waiting or [item for item in self._items if item.state == RETRY]

    def settle(self, items: list[Item], turn: str) -> None:
        """Note that a turn answers these items; others whose response failed are not asked again."""
        for item in self._items:
            if item.state == RETRY:
                item.state = SETTLED
        for item in items:
            item.state, item.turn = SETTLED, turn

    def _forget_audio(self) -> None:
        left = self._kept
        for item in reversed(self._items):
            for part in item.content:
                if part.audio is not None:
                    left -= len(part.audio)
                    part.audio = part.audio if left >= 0 else None


def item_from(given: ItemSettings, item_id: str, audio_format: str, max_seconds: float, path: str = "item") -> Item:
    """Make an item of what a client sent.

    Args:
        given: the item as it came.
        item_id: id of the item, if the client gives none.
        audio_format: format of its audio.
        max_seconds: maximum length of its audio in seconds.
        path: path of the item in the event, for errors.

    Raises:
        ProtocolError: something is missing, or does not belong there.
    """
    if given.type == "item_reference":
        raise ProtocolError("invalid_value", "A reference to an item belongs into response.input.", f"{path}.type")
    item = Item(given.id or item_id, given.type, given.role)
    if item.id == ROOT:
        raise ProtocolError("invalid_value", "No item can have the id 'root'.", f"{path}.id")
    if given.type != "message":
        item.role, item.call = None, _call(given, path)
        return item
    if given.role is None:
        raise ProtocolError("missing_required_parameter", "A message needs a role.", f"{path}.role")
    if not given.content:
        raise ProtocolError("missing_required_parameter", "A message needs content.", f"{path}.content")
    for number, part in enumerate(given.content):
        left = max_seconds - len(item.samples) / RATE
        item.content.append(_content(part, given.role, audio_format, left, f"{path}.content[{number}]"))
    if sum(len(part.words) for part in item.content) > MAX_TEXT:
        text = f"The texts of a message may have at most {MAX_TEXT} characters together."
        raise ProtocolError("string_above_max_length", text, f"{path}.content")
    return item


def _call(given: ItemSettings, path: str) -> dict[str, str]:
    names = ("call_id", "name", "arguments") if given.type == "function_call" else ("call_id", "output")
    found = {name: getattr(given, name) for name in names}
    for name, value in found.items():
        if value is None and not (name == "call_id" and given.type == "function_call"):
            raise ProtocolError("missing_required_parameter", f"A {given.type} needs {name}.", f"{path}.{name}")
    return {name: value for name, value in found.items() if value is not None}


def _content(part: ContentPart, role: str, audio_format: str, max_seconds: float, path: str) -> ItemContent:
    if part.type not in _PARTS_OF[role]:
        text = f"A message of the {role} cannot contain {part.type} (choices: {', '.join(_PARTS_OF[role])})."
        raise ProtocolError("invalid_value", text, f"{path}.type")
    if part.type.endswith("_text"):
        if part.text is None:
            raise ProtocolError("missing_required_parameter", f"{part.type} needs text.", f"{path}.text")
        return ItemContent(part.type, text=part.text)
    if part.type == "output_audio":
        if part.audio:
            text = "The speech of an answer cannot be given, its transcript can."
            raise ProtocolError("invalid_value", text, f"{path}.audio")
        return ItemContent(part.type, transcript=part.transcript or "")
    if not part.audio:
        raise ProtocolError("missing_required_parameter", "input_audio needs audio.", f"{path}.audio")
    size = len(part.audio) * 3 // 4 - part.audio[-2:].count("=")
    seconds = size // 2 / RATE if audio_format == "audio/pcm" else size / 8000
    # before it is decoded and resampled, which holds up the event loop
    if size <= MAX_AUDIO_BYTES and round((seconds - max_seconds) * RATE) > 0:
        text = f"A question has too much speech: a part of {seconds:g} s, where {max_seconds:g} s more are allowed."
        raise ProtocolError("audio_too_long", text, f"{path}.audio")
    samples = InputAudio(audio_format).push(decode_audio(part.audio, f"{path}.audio"))
    if not len(samples):
        raise ProtocolError("invalid_value", "The audio has no sample.", f"{path}.audio")
    return ItemContent(part.type, transcript=part.transcript, audio=stored(samples))
