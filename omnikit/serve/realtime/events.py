"""The events of the Realtime protocol (GA names): those of clients are parsed and checked, errors are built.

Fields that the server does not know are ignored, as newer clients send more of them. Names of the beta protocol are
refused with the name that replaced them: a client that uses them would not understand the answers. The events and their
fields are those of OpenAI's API reference, as the package `openai` has them in `openai.types.realtime`.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from omnikit.serve import long_json
from omnikit.serve.audio_formats import FORMATS
from omnikit.serve.long_json import TooLong

MAX_AUDIO_BYTES = 15 * 2**20
"""Maximum size in bytes of the audio in one event."""
MAX_TEXT = 2**16
"""Maximum number of characters of a text that a session keeps."""
MAX_OUTPUT_TOKENS = 4096
"""Maximum of `max_output_tokens`, apart from "inf"."""
_MAX_ID, _MAX_EVENT_ID = 128, 512
_MAX_LEVELS = 64  # of objects and arrays in each other; they are copied recursively


class ProtocolError(Exception):
    """A client's mistake, reported to it as an `error` event after which the session goes on.

    Args:
        code: name of the mistake, for programs.
        message: explanation for people.
        param: path of the field that is wrong, such as `session.audio.input.format`.
        event_id: id that the client gave its event.
    """

    def __init__(self, code: str, message: str, param: str | None = None, event_id: str | None = None):
        super().__init__(message)
        self.code, self.message, self.param, self.event_id = code, message, param, event_id

    def event(self) -> dict[str, Any]:
        """Return the `error` event, without its own event id."""
        return error_event("invalid_request_error", self.code, self.message, self.param, self.event_id)


def error_event(
    kind: str, code: str, message: str, param: str | None = None, event_id: str | None = None
) -> dict[str, Any]:
    """Return an `error` event, without its own event id.

    Args:
        kind: `invalid_request_error` or `server_error`.
        code: name of the error, for programs.
        message: explanation for people.
        param: path of the wrong field in the client's event, if any.
        event_id: id of the client's event, if any.
    """
    error = {"type": kind, "code": code, "message": message, "param": param, "event_id": event_id}
    return {"type": "error", "error": error}


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _tokens(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_OUTPUT_TOKENS
    if value is None or value == "inf" or whole:
        return value
    return _refuse(f'must be a whole number from 1 to {MAX_OUTPUT_TOKENS}, or "inf"')


def _modalities(value: list[str] | None) -> list[str] | None:
    if value is None or value in (["audio"], ["text"]):
        return value
    return _refuse('must be ["audio"], which includes the text, or ["text"]')


def _voice(value: Any) -> Any:
    if isinstance(value, dict):
        value = value.get("id")
    if value is None or (isinstance(value, str) and len(value) <= _MAX_ID):
        return value
    return _refuse("must be a name, or an object with an id")


def _metadata(value: dict[str, str] | None) -> dict[str, str] | None:
    if value and (len(value) > 16 or any(len(key) > 64 or len(text) > 512 for key, text in value.items())):
        _refuse("must have at most 16 pairs, of keys of at most 64 and values of at most 512 characters")
    return value


def _nested(value: Any, levels: int) -> bool:
    """Return whether a value has more levels of objects and arrays than these."""
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_nested(part, levels - 1) for part in parts)


def _echoed(value: Any) -> Any:
    """Refuse a value that is too large to be kept for as long as the session is open."""
    if _nested(value, _MAX_LEVELS):
        _refuse(f"must have at most {_MAX_LEVELS} levels of objects and arrays")
    if len(json.dumps(value, allow_nan=False)) > MAX_TEXT:
        _refuse(f"must have at most {MAX_TEXT} characters as JSON")
    return value


Tokens = Annotated[Any, AfterValidator(_tokens)]
Modalities = Annotated[list[str] | None, AfterValidator(_modalities)]
Voice = Annotated[Any, AfterValidator(_voice)]
Echoed = Annotated[Any, AfterValidator(_echoed)]
Settings = Annotated[dict[str, Any] | None, AfterValidator(_echoed)]
Text = Annotated[str | None, Field(max_length=MAX_TEXT)]
Id = Annotated[str, Field(min_length=1, max_length=_MAX_ID)]
Metadata = Annotated[dict[str, str] | None, AfterValidator(_metadata)]


def _milliseconds(high: float, low: float = 0) -> Any:
    return Annotated[float | None, Field(ge=low, le=high), AfterValidator(lambda ms: None if ms is None else round(ms))]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Format(_Model):
    """An audio format; its rate follows from its type and may be left out."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
    rate: int | None = None


class TurnDetection(_Model):
    """Settings of the turn detection, of which only those that change are given."""

    type: Literal["server_vad", "semantic_vad"] | None = None
    threshold: Annotated[float | None, Field(ge=0, le=1)] = None
    prefix_padding_ms: _milliseconds(5000) = None
    silence_duration_ms: _milliseconds(10_000) = None
    idle_timeout_ms: _milliseconds(3_600_000, low=1) = None
    create_response: bool | None = None
    interrupt_response: bool | None = None
    eagerness: Literal["low", "medium", "high", "auto"] | None = None


class AudioInputSettings(_Model):
    """Settings of the client's audio."""

    format: Format | None = None
    transcription: Settings = None
    noise_reduction: Settings = None
    turn_detection: TurnDetection | None = None


class AudioOutputSettings(_Model):
    """Settings of the answers' audio."""

    format: Format | None = None
    voice: Voice = None
    speed: Annotated[float | None, Field(ge=0.25, le=1.5)] = None


class AudioSettings(_Model):
    """Settings of the audio in both directions."""

    input: AudioInputSettings | None = None
    output: AudioOutputSettings | None = None


class SessionSettings(_Model):
    """Settings of a session, of which only those that change are given."""

    type: Literal["realtime"] = "realtime"
    output_modalities: Modalities = None
    instructions: Text = None
    audio: AudioSettings | None = None
    max_output_tokens: Tokens = None
    tools: Annotated[list[dict[str, Any]] | None, AfterValidator(_echoed)] = None
    tool_choice: Echoed = None
    tracing: Echoed = None
    truncation: Echoed = None
    prompt: Settings = None
    include: Annotated[list[str] | None, AfterValidator(_echoed)] = None
    parallel_tool_calls: bool | None = None
    reasoning: Settings = None


class ContentPart(_Model):
    """A part of the content of a message."""

    type: Literal["input_text", "input_audio", "output_text", "output_audio"]
    text: Text = None
    audio: str | None = None
    transcript: Text = None


class ItemSettings(_Model):
    """An item as a client creates it, or a reference to one."""

    id: Id | None = None
    type: Literal["message", "function_call", "function_call_output", "item_reference"]
    role: Literal["user", "assistant", "system"] | None = None
    content: Annotated[list[ContentPart] | None, Field(max_length=64)] = None
    call_id: Annotated[str | None, Field(max_length=_MAX_ID)] = None
    name: Annotated[str | None, Field(max_length=_MAX_ID)] = None
    arguments: Text = None
    output: Text = None


class ResponseAudioSettings(_Model):
    """Settings of one answer's audio."""

    output: AudioOutputSettings | None = None


class ResponseSettings(_Model):
    """Settings of one response that differ from the session's."""

    conversation: Literal["auto", "none"] | None = None
    input: Annotated[list[ItemSettings] | None, Field(max_length=64)] = None
    output_modalities: Modalities = None
    audio: ResponseAudioSettings | None = None
    max_output_tokens: Tokens = None
    metadata: Metadata = None


class ClientEvent(_Model):
    """An event from the client."""

    type: str
    event_id: Annotated[str | None, Field(max_length=_MAX_EVENT_ID)] = None


class SessionUpdate(ClientEvent):
    """Change settings of the session."""

    session: SessionSettings


class BufferAppend(ClientEvent):
    """Append audio, as base64, to the input audio buffer."""

    audio: str


class ItemCreate(ClientEvent):
    """Insert an item into the conversation, at its end if `previous_item_id` is not given."""

    item: ItemSettings
    previous_item_id: str | None = None


class ItemEvent(ClientEvent):
    """Retrieve or delete an item."""

    item_id: str


class ItemTruncate(ClientEvent):
    """Cut an answer to what the user heard of it."""

    item_id: str
    content_index: int
    audio_end_ms: Annotated[float, Field(ge=0)]


class ResponseCreate(ClientEvent):
    """Ask for a response."""

    response: ResponseSettings | None = None


class ResponseCancel(ClientEvent):
    """End a response, or the one in progress in the conversation if no id is given."""

    response_id: str | None = None


CLIENT_EVENTS: dict[str, type[ClientEvent]] = {
    "session.update": SessionUpdate,
    "input_audio_buffer.append": BufferAppend,
    "input_audio_buffer.commit": ClientEvent,
    "input_audio_buffer.clear": ClientEvent,
    "conversation.item.create": ItemCreate,
    "conversation.item.retrieve": ItemEvent,
    "conversation.item.truncate": ItemTruncate,
    "conversation.item.delete": ItemEvent,
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
}
"""Events that clients send, by their types."""

_BETA_AUDIO = {
    "voice": "audio.output.voice",
    "output_audio_format": "audio.output.format",
    "max_response_output_tokens": "max_output_tokens",
    "modalities": "output_modalities",
}
_BETA_FIELDS = {
    "session": {
        **_BETA_AUDIO,
        "speed": "audio.output.speed",
        "input_audio_format": "audio.input.format",
        "input_audio_transcription": "audio.input.transcription",
        "input_audio_noise_reduction": "audio.input.noise_reduction",
        "turn_detection": "audio.input.turn_detection",
    },
    "response": _BETA_AUDIO,
}
"""Names of the beta protocol and those that replaced them, by the object that they stand in."""
_BETA_PARTS = {"text": "output_text", "audio": "output_audio"}
_CODES = {"missing": "missing_required_parameter", "string_too_long": "string_above_max_length"}


def parse(raw: str | dict[str, Any]) -> ClientEvent:
    """Check an event from the client and return it.

    Args:
        raw: JSON text, or the object that it holds.

    Raises:
        ProtocolError: it is no event, or a field is wrong.
    """
    event = decoded(raw) if isinstance(raw, str) else raw
    if not isinstance(event, dict):
        raise ProtocolError("invalid_json", "An event must be a JSON object.")
    event_id = event.get("event_id")
    try:
        _check_names(event)
        return CLIENT_EVENTS[event["type"]].model_validate(event)
    except ValidationError as error:
        found = _explained(error)
    except ProtocolError as error:
        found = error
    found.event_id = event_id if isinstance(event_id, str) and len(event_id) <= _MAX_EVENT_ID else None
    raise found


def decode_audio(text: str, param: str = "audio") -> bytes:
    """Decode the base64 text of audio.

    Raises:
        ProtocolError: it is no base64, or too large.
    """
    if len(text) > MAX_AUDIO_BYTES * 4 // 3 + 4:
        raise ProtocolError("audio_too_large", "An event may hold at most 15 MiB of audio.", param)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError("invalid_value", "Audio must be base64, with its padding.", param) from None


def encode_audio(data: bytes) -> str:
    """Encode audio as base64 text."""
    return base64.b64encode(data).decode("ascii")


def decoded(text: str) -> Any:
    """Decode the JSON text of an event, quickly even if it holds much audio.

    Raises:
        ProtocolError: it is no JSON, or too long.
    """

    def no_number(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        event = long_json.loads(text, no_number)
        if "\\" in text and "\\ud" in text.lower():  # half of a surrogate pair cannot be sent back
            json.dumps(event, ensure_ascii=False).encode()
        return event
    except TooLong as error:
        raise ProtocolError("event_too_large", f"An event is {error}.") from None
    except (ValueError, RecursionError) as error:
        reason = str(error)[:200] if isinstance(error, ValueError) else "it is nested too deeply"
        raise ProtocolError("invalid_json", f"An event must be a JSON object: {reason}") from None


def _check_names(event: dict[str, Any]) -> None:
    """Refuse unknown events, names of the beta protocol, and what only other transports or servers have."""
    kind = event.get("type")
    if kind is None:
        raise ProtocolError("missing_required_parameter", "The event has no type.", "type")
    if kind == "transcription_session.update" or _type_of(event.get("session")) == "transcription":
        text = "Transcription sessions are not served: ask for audio.input.transcription in a realtime session."
        raise ProtocolError("unsupported_session_type", text, "session.type")
    if kind == "output_audio_buffer.clear":
        text = f"{kind} belongs to WebRTC; over a WebSocket, send response.cancel, then conversation.item.truncate."
        raise ProtocolError("unsupported_event", text, "type")
    if not isinstance(kind, str) or kind not in CLIENT_EVENTS:
        text = f"Unknown event type {str(kind)[:80]!r} (choices: {', '.join(CLIENT_EVENTS)})."
        raise ProtocolError("unknown_event", text, "type")
    for section, names in _BETA_FIELDS.items():
        _check_beta(event.get(section), names, section)
    _check_item(event.get("item"), "item")
    given = event["response"].get("input") if isinstance(event.get("response"), dict) else None
    for number, item in enumerate(given if isinstance(given, list) else ()):
        _check_item(item, f"response.input[{number}]")


def _check_beta(section: Any, names: dict[str, str], path: str) -> None:
    for name, new in names.items() if isinstance(section, dict) else ():
        if name in section:
            text = f"{name} is a name of the beta protocol; its name is {path}.{new} now."
            raise ProtocolError("unknown_parameter", text, f"{path}.{name}")


def _check_item(item: Any, path: str) -> None:
    """Refuse contents of the beta protocol, and pictures, with a reason."""
    content = item.get("content") if isinstance(item, dict) else None
    for number, part in enumerate(content if isinstance(content, list) else ()):
        kind, where = _type_of(part), f"{path}.content[{number}].type"
        if kind in _BETA_PARTS:
            text = f"{kind} is a name of the beta protocol; its name is {_BETA_PARTS[kind]} now."
            raise ProtocolError("invalid_value", text, where)
        if kind == "input_image":
            raise ProtocolError("unsupported_content_type", "The system has no eyes: input_image is not served.", where)


def _type_of(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def _explained(error: ValidationError) -> ProtocolError:
    """Return the first of pydantic's findings as a protocol error."""
    found = error.errors(include_url=False, include_input=False)[0]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in found["loc"]).lstrip(".")
    text = found["msg"].removeprefix("Value error, ")
    code = _CODES.get(found["type"], "invalid_type" if found["type"].endswith("_type") else "invalid_value")
    return ProtocolError(code, f"{path}: {text[:1].lower()}{text[1:]}", path)


def check_format(format: Format, path: str) -> dict[str, Any]:
    """Return an audio format as sessions show it.

    Raises:
        ProtocolError: a rate that the format does not have.
    """
    pcm = format.type == FORMATS[0]
    rate = 24000 if pcm else 8000
    if format.rate not in (None, rate):
        text = f"{format.type} has {rate} Hz, not {format.rate}."
        raise ProtocolError("invalid_value", text, f"{path}.rate")
    return {"type": format.type, "rate": rate} if pcm else {"type": format.type}
