"""The messages of a chat completion as the turns of a conversation and a last question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel

from omnikit.serve.refusals import Refusal
from omnikit.serve.rest.errors import bad_input


class AudioContent(BaseModel):
    """A recording, as base64."""

    data: str
    format: Literal["wav", "mp3"]


class MessagePart(BaseModel):
    """A part of a message's content."""

    type: Literal["text", "input_audio", "refusal"]
    text: str | None = None
    input_audio: AudioContent | None = None


class AudioId(BaseModel):
    """A reference to the audio of an earlier answer of this server."""

    id: str


class Message(BaseModel):
    """A message. What `system` and `developer` say has no effect, and neither has text beside a recording."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[MessagePart] | None = None
    audio: AudioId | None = None

    @property
    def parts(self) -> list[MessagePart]:
        """The parts of the content."""
        if isinstance(self.content, str):
            return [MessagePart(type="text", text=self.content)]
        return self.content or []

    @property
    def text(self) -> str:
        """The text of all parts, joined by spaces."""
        return " ".join(part.text for part in self.parts if part.type == "text" and part.text)


@dataclass
class Asked:
    """A question: a recording or, without one, a text."""

    texts: list[str] = field(default_factory=list)
    audio: AudioContent | None = None
    param: str = "messages"
    """Place of the question in the request's body, for errors about it."""

    @property
    def text(self) -> str:
        """Text of a written question."""
        return " ".join(self.texts)

    def __bool__(self) -> bool:
        return bool(self.texts or self.audio)

    def add(self, message: Message, place: str) -> None:
        """Add the content of a message.

        Raises:
            Refusal: it has a second recording, or a part that belongs to another role.
        """
        for i, part in enumerate(message.parts):
            if part.type == "input_audio" and part.input_audio is not None:
                self._add_audio(part.input_audio, f"{place}.content.{i}")
            elif part.type != "text" or part.text is None:
                raise bad_input(f"{place}.content.{i}: a user's part is a text or an input_audio", place)
        if text := message.text:
            self.texts.append(text)
            self.param = place if self.audio is None else self.param

    def _add_audio(self, audio: AudioContent, place: str) -> None:
        if self.audio is not None:
            raise bad_input(f"{place}: a question has one recording, this one has more", place)
        self.audio, self.param = audio, place


@dataclass(frozen=True)
class Exchanged:
    """A turn that has been answered."""

    asked: Asked
    answer: str


@dataclass
class _MessageReader:
    """The messages that were read so far."""

    transcript_of: Callable[[str], str | None]
    turns: list[Exchanged] = field(default_factory=list)
    asked: Asked = field(default_factory=Asked)
    answers: list[str] = field(default_factory=list)

    def user(self, message: Message, place: str) -> None:
        self.finish_turn()
        self.asked.add(message, place)

    def assistant(self, message: Message, place: str) -> None:
        text = message.text
        if not text and message.audio is not None:
            text = self.transcript_of(message.audio.id)
            if text is None:
                words = "no such audio, or it has expired; send the answer's transcript as content"
                raise bad_input(f"{place}.audio.id: {words}", f"{place}.audio.id")
        if text and self.asked:
            self.answers.append(text)

    def finish_turn(self) -> None:
        if self.answers:
            self.turns.append(Exchanged(self.asked, " ".join(self.answers)))
            self.asked, self.answers = Asked(), []


def read_dialog(
    messages: Sequence[Message], transcript_of: Callable[[str], str | None]
) -> tuple[list[Exchanged], Asked]:
    """Return the answered turns of a dialog, and the question that is to be answered.

    Messages of one role that follow each other are one; an answer to no question is left out.

    Args:
        messages: messages in the order in which they were said.
        transcript_of: function that returns the text of an earlier spoken answer by the id of its audio; None = there
            is none.

    Raises:
        Refusal: the last message is not a user's, or a message cannot be used.
    """
    reader = _MessageReader(transcript_of)
    for i, message in enumerate(messages):
        if message.role == "user":
            reader.user(message, f"messages.{i}")
        elif message.role == "assistant":
            reader.assistant(message, f"messages.{i}")
    if reader.answers or not reader.asked:
        raise _no_question()
    return reader.turns, reader.asked


def _no_question() -> Refusal:
    return bad_input("messages: the last one must be a user's, with a text or a recording", "messages")
