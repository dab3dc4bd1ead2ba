"""The state machine of a Realtime session: the protocol in its GA form, without I/O.

The docs page serve.md says what clients can rely on. The rules that hold it together:

- *One answer at a time* continues the conversation. A question that ends while the answer before it is being cancelled
  (or while it goes on, with `interrupt_response` off) is answered when that one is done. Responses outside of the
  conversation run beside it, at most `MAX_ALONE`.
- *A question* is all that the user said or wrote since the last one: the items that wait, joined as in `questions`. An
  answer that speech interrupts before its first chunk leaves its question waiting, so a speaker who paused is answered
  as a whole. The question of a response that failed or was cancelled before its first chunk is answered by the next
  `response.create` if nothing else waits.
- *Speech over an answer*, while it is generated or its audio cannot have been played, counts from `interrupt_min_ms`
  on. Shorter speech leaves no trace. The playing time is that of the sent audio from when it was sent.
- *The system's memory* has turns, the protocol has items. Deleting any item of a turn forgets the turn. An assistant's
  message that a client adds after a user's, at the end, is remembered with it as a turn; elsewhere it is kept, but
  unknown to the system. So are messages of the system, function calls and their outputs. An answer that was sent and
  is never truncated counts as heard. Edits of the memory wait for the end of a running answer.
- *Audio* of a turn is at most `max_audio_seconds` long: a detected turn is committed there, and what the user goes on
  to say until the next pause is not heard; a longer buffer that the client commits is refused and cleared.
- *Reports* on what has ended, and everything after `Close`, are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnikit.serve.audio_formats import InputAudio
from omnikit.serve.realtime.actions import (
    RATE,
    Action,
    Cancel,
    Close,
    Crop,
    Detect,
    Forget,
    Heard,
    Idle,
    Listen,
    Remember,
    Send,
    SpeechContinues,
    SpeechStarted,
    SpeechStopped,
    StartAnswer,
    Transcribe,
    Usage,
)
from omnikit.serve.realtime.events import (
    BufferAppend,
    ClientEvent,
    ItemCreate,
    ItemEvent,
    ItemTruncate,
    ProtocolError,
    ResponseCancel,
    ResponseCreate,
    ResponseSettings,
    SessionUpdate,
    check_format,
    decode_audio,
    error_event,
    parse,
)
from omnikit.serve.realtime.input_buffer import MS, InputBuffer, restored
from omnikit.serve.realtime.items import (
    KEPT_SECONDS,
    RETRY,
    SETTLED,
    WAITING,
    ConversationItems,
    Item,
    ItemContent,
    item_from,
)
from omnikit.serve.realtime.questions import question_of
from omnikit.serve.realtime.response import CANCELLED, CLIENT_CANCELLED, TURN_DETECTED, Event, Response, ResponseConfig
from omnikit.serve.realtime.session_config import SessionConfig
from omnikit.serve.settings import ServerSettings

MAX_ALONE = 4
"""Maximum number of responses that run outside of the conversation."""
SHORTEST_MS = 100
"""Milliseconds of audio that a commit needs at least."""
LAG_SECONDS = 60
"""Seconds by which the turn detector may lag behind the audio: so much is kept while nobody is known to speak."""
MAX_APPEND_SECONDS = 15 * 2**20 / (2 * RATE)
"""Maximum length in seconds of the audio in one event: 15 MiB of PCM."""
NORMAL_CLOSURE = 1000
"""Close code of RFC 6455, section 7.4.1, with which sessions end at their limits."""


@dataclass
class _Turn:
    """Speech that the detector has reported and that has not ended."""

    begin: int
    """Number of its first sample."""
    item_id: str = ""
    """Id of the item that it becomes; empty until the client was told that it began."""


@dataclass(frozen=True)
class _Asked:
    """A response that begins when the running one has ended."""

    settings: ResponseSettings
    event_id: str | None
    by_client: bool


class RealtimeSession:
    """A Realtime session; each method takes what happened and returns what is to be done, in order.

    Args:
        model: name of the system that answers.
        settings: the server's limits.
        now: clock in seconds.
        new_id: maker of ids from a kind: `sess`, `conv`, `event`, `item` or `resp`.
        out_rate: sample rate of answers in Hz.
    """

    def __init__(
        self,
        model: str,
        settings: ServerSettings,
        *,
        now: Callable[[], float],
        new_id: Callable[[str], str],
        out_rate: int,
    ):
        self._limits, self._now, self._new_id, self._out_rate = settings, now, new_id, out_rate
        self._config = SessionConfig(new_id("sess"), model)
        self._conversation_id = new_id("conv")
        self._items = ConversationItems(max(KEPT_SECONDS, settings.max_audio_seconds))
        self._decoder = InputAudio(self._config.input_format)
        self._buffer = InputBuffer()
        self._detected_from = 0  # number of the sample at which the detector's clock began
        self._turn: _Turn | None = None
        self._responses: dict[str, Response] = {}
        self._asked: _Asked | None = None
        self._edits: list[Crop | Forget | Remember] = []
        self._untranscribed: list[Item] = []
        self._transcribing: dict[str, Item] = {}
        self._played_until = self._began = self._seen = now()
        self._idle_from: float | None = None
        self._out: list[Action] = []
        self._ending = self._closed = False
        self._handlers: dict[str, Callable[[Any], None]] = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit_buffer,
            "input_audio_buffer.clear": self._clear_buffer,
            "conversation.item.create": self._create_item,
            "conversation.item.retrieve": self._retrieve_item,
            "conversation.item.truncate": self._truncate_item,
            "conversation.item.delete": self._delete_item,
            "response.create": self._create_response,
            "response.cancel": self._cancel_response,
        }

    def opened(self) -> list[Action]:
        """Begin the session."""
        return self._act(self._open)

    def receive(self, event: dict[str, Any] | str) -> list[Action]:
        """Handle an event of the client, as JSON text or as the object that it holds."""
        return self._act(self._receive, event)

    def heard(self, report: Heard) -> list[Action]:
        """Handle a report of the turn detector."""
        return self._act(self._hear, report)

    def chunk(self, response_id: str, text: str, samples: np.ndarray) -> list[Action]:
        """Handle a chunk of an answer.

        Args:
            response_id: id of the response.
            text: further text.
            samples: further samples [n] (float32, at the rate of the system).
        """
        return self._act(self._chunk, response_id, text, samples)

    def answered(self, response_id: str, end: str, usage: Usage) -> list[Action]:
        """Handle the end of an answer: the reason, one of `omnikit.generate.ENDS`, and its numbers of tokens."""
        return self._act(self._answered, response_id, end, usage)

    def failed(self, response_id: str, message: str, code: str = "server_error") -> list[Action]:
        """Handle the error that ended an answer; the system does not remember its turn."""
        return self._act(self._failed, response_id, message, code)

    def transcribed(self, item_id: str, text: str) -> list[Action]:
        """Handle the transcript of a spoken question."""
        return self._act(self._transcribed, item_id, text)

    def not_transcribed(self, item_id: str, message: str) -> list[Action]:
        """Handle the error for which a spoken question has no transcript."""
        return self._act(self._not_transcribed, item_id, message)

    def tick(self) -> list[Action]:
        """Start transcriptions that wait, and end the session if its time is over; called about once a second."""
        return self._act(self._tick)

    def closed(self) -> list[Action]:
        """End the session after the client has left: nothing is sent any more, running answers are cancelled."""
        if self._closed:
            return []
        self._closed = True
        return [Cancel(response.id) for response in self._responses.values() if response.cancelled_by is None]

    # What every method does.

    def _act(self, do: Callable[..., None], *args: Any) -> list[Action]:
        if self._closed:
            return []
        do(*args)
        out, self._out = self._out, []
        return out

    def _do(self, action: Action) -> None:
        self._out.append(action)

    def _send(self, *events: Event) -> None:
        for event in events:
            self._do(Send({"type": event["type"], "event_id": self._new_id("event"), **event}))

    def _send_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self._send(event)

    def _edit(self, edit: Crop | Forget | Remember) -> None:
        """Change the system's memory, after the answer that is being added to it."""
        if self._active is None:
            self._do(edit)
            return
        if isinstance(edit, Crop):  # a later cut is the shorter one
            self._edits = [each for each in self._edits if not isinstance(each, Crop) or _key(each) != _key(edit)]
        self._edits.append(edit)

    def _drop_edits(self, key: str) -> bool:
        """Drop the waiting edits of a turn; return whether `Remember` was one: then the system never saw the turn."""
        dropped = [edit for edit in self._edits if _key(edit) == key]
        self._edits = [edit for edit in self._edits if _key(edit) != key]
        return any(isinstance(edit, Remember) for edit in dropped)

    @property
    def _active(self) -> Response | None:
        """The running response that is added to the conversation."""
        return next((one for one in self._responses.values() if one.conversation_id is not None), None)

    # The session and its limits.

    def _open(self) -> None:
        self._send({"type": "session.created", "session": self._config.shown()})
        self._do(Detect(self._config.detection))

    def _receive(self, raw: dict[str, Any] | str) -> None:
        self._seen, event_id = self._now(), None
        try:
            event = parse(raw)
            event_id = event.event_id
            self._handlers[event.type](event)
        except ProtocolError as error:
            error.event_id = error.event_id or event_id
            self._send(error.event())
        self._check_silence()

    def _update(self, event: SessionUpdate) -> None:
        before, self._config = self._config, self._config.updated(event.session)
        if self._config.input_format != before.input_format:
            self._decoder = InputAudio(self._config.input_format)
        if self._config.detection != before.detection:
            if before.detection is None or self._config.detection is None:
                self._detect_anew()
            self._do(Detect(self._config.detection))
        self._send({"type": "session.updated", "session": self._config.shown()})

    def _detect_anew(self) -> None:
        """Begin or end detection; audio of a turn that the client knows of is kept, other audio is dropped."""
        if self._turn is not None and self._turn.item_id:
            self._buffer.drop(self._turn.begin)
        else:
            self._buffer.drop(self._buffer.end)
        self._turn = self._idle_from = None
        self._detected_from = self._buffer.end

    def _tick(self) -> None:
        self._transcribe()
        self._check_silence()
        minutes, idle = self._limits.session_minutes, self._limits.idle_seconds
        if self._now() - self._began >= minutes * 60:
            self._end("session_expired", f"The session has reached its limit of {minutes:g} minutes.")
        elif self._now() - self._seen >= idle:
            self._end("session_idle", f"The session was closed: no event for {idle:g} seconds.")

    def _end(self, code: str, message: str) -> None:
        """End the session: its responses, then the connection."""
        self._ending = True
        for response in list(self._responses.values()):
            if response.cancelled_by is None:
                self._do(Cancel(response.id))
            self._finish(response, "cancelled", {"type": "cancelled"}, Usage())
        self._send(error_event("invalid_request_error", code, message))
        self._do(Close(NORMAL_CLOSURE, message))
        self._closed = True

    def _check_room(self) -> None:
        if len(self._items) >= self._limits.max_items:
            text = f"The conversation has {len(self._items)} items, its maximum; delete some."
            raise ProtocolError("conversation_full", text)

    # The input audio buffer.

    def _append(self, event: BufferAppend) -> None:
        data = decode_audio(event.audio)
        per_second = 2 * RATE if self._config.input_format == "audio/pcm" else 8000
        if len(data) > MAX_APPEND_SECONDS * per_second:
            text = f"An event may hold at most {MAX_APPEND_SECONDS:.0f} seconds of audio."
            raise ProtocolError("audio_too_large", text, "audio")
        samples = self._decoder.push(data)
        self._make_room()
        self._buffer.append(samples)
        if self._config.detection is not None and len(samples):
            self._do(Listen(samples))

    def _make_room(self) -> None:
        """Drop audio that no turn can need any more."""
        most = round(self._limits.max_audio_seconds * RATE)
        if self._config.detection is None:
            self._buffer.drop(self._buffer.end - most - RATE)  # the second more shows that it became too long
        elif self._turn is None:
            self._buffer.drop(self._buffer.end - LAG_SECONDS * RATE)
        elif self._buffer.end - self._turn.begin > most + LAG_SECONDS * RATE:
            self._go_on(self._turn, self._limits.max_audio_seconds * 1000)

    def _commit_buffer(self, event: ClientEvent) -> None:
        begin = self._buffer.begin if self._turn is None else self._turn.begin
        length_ms = (self._buffer.end - max(begin, self._buffer.begin)) / MS
        if length_ms < SHORTEST_MS:
            text = f"The buffer holds {length_ms:.0f} ms of audio; a commit needs at least {SHORTEST_MS} ms."
            raise ProtocolError("input_audio_buffer_commit_empty", text)
        self._check_room()
        turn, self._turn = self._turn, None
        samples = self._buffer.take(begin, self._buffer.end)
        self._decoder = InputAudio(self._config.input_format)
        if self._config.detection is not None and turn is None:
            samples = samples[-round(self._limits.max_audio_seconds * RATE) :]
        if len(samples) > self._limits.max_audio_seconds * RATE:
            text = f"A turn may have at most {self._limits.max_audio_seconds:g} seconds; the buffer was cleared."
            raise ProtocolError("audio_too_long", text)
        self._commit(samples, (turn and turn.item_id) or self._new_id("item"))

    def _clear_buffer(self, event: ClientEvent) -> None:
        self._turn = None
        self._buffer.drop(self._buffer.end)
        self._decoder = InputAudio(self._config.input_format)
        self._send({"type": "input_audio_buffer.cleared"})

    def _commit(self, samples: np.ndarray, item_id: str) -> None:
        """Make an item of samples [n] (int16)."""
        item = Item(item_id, role="user", content=[ItemContent("input_audio", audio=samples)], state=WAITING)
        self._idle_from = None
        previous = self._items.last_id
        self._send({"type": "input_audio_buffer.committed", "previous_item_id": previous, "item_id": item_id})
        self._add(item)
        if self._config.transcribes:
            self._untranscribed.append(item)

    def _add(self, item: Item, after: str | None = None) -> None:
        """Add an item that is complete."""
        self._items.add(item, after)
        for name in ("added", "done"):
            previous = self._items.previous(item)
            self._send({"type": f"conversation.item.{name}", "previous_item_id": previous, "item": item.shown()})

    # Turns that the detector finds.

    def _hear(self, report: Heard) -> None:
        if self._config.detection is None:
            return
        if isinstance(report, Idle):
            self._check_silence()
        elif isinstance(report, SpeechStarted):
            self._begin_turn(report)
        elif self._turn is not None and isinstance(report, SpeechContinues):
            self._go_on(self._turn, report.speech_ms)
        elif self._turn is not None and isinstance(report, SpeechStopped):
            self._stop(self._turn, report)

    def _begin_turn(self, report: SpeechStarted) -> None:
        if self._turn is None:
            begin = self._detected_from + round(report.start_ms * MS)
            self._turn = _Turn(min(max(begin, self._buffer.begin), self._buffer.end))
            self._idle_from = None
        self._go_on(self._turn, report.speech_ms)

    def _go_on(self, turn: _Turn, speech_ms: float) -> None:
        if not turn.item_id and (speech_ms >= self._limits.interrupt_min_ms or not self._over_answer()):
            self._announce(turn)
        if turn.item_id and speech_ms >= self._limits.max_audio_seconds * 1000:
            self._end_turn(turn, turn.begin + round(self._limits.max_audio_seconds * RATE))

    def _stop(self, turn: _Turn, report: SpeechStopped) -> None:
        if not turn.item_id and report.speech_ms < self._limits.interrupt_min_ms:
            self._turn = None  # a backchannel
            self._wait_for_speech()
            return
        if not turn.item_id:
            self._announce(turn)
        self._end_turn(turn, self._detected_from + round(report.end_ms * MS))

    def _over_answer(self) -> bool:
        return self._active is not None or self._now() < self._played_until

    def _announce(self, turn: _Turn) -> None:
        """Tell the client that the user speaks, which ends the answer."""
        turn.item_id = self._new_id("item")
        start = turn.begin // MS
        self._send({"type": "input_audio_buffer.speech_started", "audio_start_ms": start, "item_id": turn.item_id})
        if self._config.interrupts:
            self._stop_playing()
            if (active := self._active) is not None and active.cancelled_by is None:
                self._cancel(active, TURN_DETECTED)
            if self._asked is not None and not self._asked.by_client:
                self._asked = None

    def _end_turn(self, turn: _Turn, end: int) -> None:
        """Commit a turn and answer it."""
        self._turn = None
        end = min(end, turn.begin + round(self._limits.max_audio_seconds * RATE), self._buffer.end)
        event = {"type": "input_audio_buffer.speech_stopped", "audio_end_ms": end // MS, "item_id": turn.item_id}
        self._send(event)
        samples = self._buffer.take(turn.begin, end)
        if not len(samples):
            return
        try:
            self._check_room()
        except ProtocolError as error:
            self._send(error.event())
            return
        self._commit(samples, turn.item_id)
        self._respond()

    def _respond(self) -> None:
        """Answer a turn that was detected, if the client wants that."""
        if self._config.responds:
            asked = _Asked(ResponseSettings(), None, by_client=False)
            if self._active is None:
                self._start_late(asked)
            else:
                self._asked = self._asked or asked
        self._transcribe(self._active)

    def _check_silence(self) -> None:
        """Answer the user's silence if it has lasted for as long as the client asked."""
        detection = self._config.detection
        if detection is None or detection.idle_ms is None or self._idle_from is None or self._turn is not None:
            return
        if self._now() < self._idle_from + detection.idle_ms / 1000:
            return
        most = min(detection.idle_ms, self._limits.max_audio_seconds * 1000)
        begin, end = max(self._buffer.begin, self._buffer.end - round(most * MS)), self._buffer.end
        if end - begin < SHORTEST_MS * MS or len(self._items) >= self._limits.max_items:
            return
        item_id = self._new_id("item")
        event = {"type": "input_audio_buffer.timeout_triggered", "item_id": item_id}
        self._send({**event, "audio_start_ms": begin // MS, "audio_end_ms": end // MS})
        self._commit(self._buffer.take(begin, end), item_id)
        self._respond()

    def _wait_for_speech(self) -> None:
        if self._active is None:
            self._idle_from = max(self._now(), self._played_until)

    def _stop_playing(self) -> None:
        self._played_until = min(self._played_until, self._now())

    # Items.

    def _create_item(self, event: ItemCreate) -> None:
        self._check_room()
        audio = self._config.input_format, self._limits.max_audio_seconds
        item = item_from(event.item, self._new_id("item"), *audio)
        if item.id in self._items:
            text = f"The conversation has an item with the id {item.id[:80]!r} already."
            raise ProtocolError("item_create_duplicate_item_id", text, "item.id")
        self._add(item, event.previous_item_id)
        if item.role == "user" and not any(_is_past(later) for later in self._items.after(item)):
            item.state = WAITING
        if item.role == "assistant":
            self._remember(item)

    def _remember(self, answer: Item) -> None:
        """Make a remembered turn of an assistant's message at the end and the user's messages before it."""
        if any(later.role in ("user", "assistant") for later in self._items.after(answer)):
            return
        asked = [item for item in self._items.before(answer) if item.state == WAITING]
        question = " ".join(words for item in asked if (words := item.words))
        for item in asked:
            item.state = SETTLED
        if question and answer.words:
            key = self._new_id("resp")
            for item in (*asked, answer):
                item.turn = key
            self._edit(Remember(key, question, answer.words))

    def _retrieve_item(self, event: ItemEvent) -> None:
        item = self._items.get(event.item_id, "item_retrieve_invalid_item_id")
        self._send({"type": "conversation.item.retrieved", "item": item.shown(self._config.input_format)})

    def _truncate_item(self, event: ItemTruncate) -> None:
        item = self._items.get(event.item_id, "item_truncate_invalid_item_id")
        part = item.spoken_part
        if item.role != "assistant" or part is None:
            raise ProtocolError("invalid_value", "Only an answer with speech can be truncated.", "item_id")
        if event.content_index != part:
            raise ProtocolError("invalid_value", f"The speech of the answer is content {part}.", "content_index")
        if item.sent_ms is None or event.audio_end_ms >= item.sent_ms + 1:
            text = f"The answer has {item.sent_ms or 0:.0f} ms of audio, less than {event.audio_end_ms:g} ms."
            raise ProtocolError("invalid_value", text, "audio_end_ms")
        end_ms = int(event.audio_end_ms)
        running = next((one for one in self._responses.values() if one.item is item), None)
        if running is not None and running.cancelled_by is None:
            self._cancel(running, CLIENT_CANCELLED)
        cuts = item.cut_ms is None or end_ms < item.cut_ms
        item.sent_ms, item.content[part].transcript = min(item.sent_ms, event.audio_end_ms), None
        event_shown = {"type": "conversation.item.truncated", "item_id": item.id, "content_index": part}
        self._send({**event_shown, "audio_end_ms": end_ms})
        if item.turn is not None and cuts:
            item.cut_ms = end_ms
            self._edit(Crop(item.turn, end_ms / 1000))
        self._stop_playing()

    def _delete_item(self, event: ItemEvent) -> None:
        item = self._items.get(event.item_id, "item_delete_invalid_item_id")
        if item.status == "in_progress":
            text = "The item is being generated; cancel its response first."
            raise ProtocolError("item_in_progress", text, "item_id")
        self._items.remove(item)
        self._send({"type": "conversation.item.deleted", "item_id": item.id})
        if item.turn is not None:
            self._forget(item.turn)

    def _forget(self, key: str) -> None:
        """Remove a turn from the system's memory."""
        if not self._drop_edits(key):
            self._edit(Forget(key))
        self._items.forget_turn(key)
        if key in self._responses:
            self._responses[key].item.turn = None

    # Responses.

    def _create_response(self, event: ResponseCreate) -> None:
        asked = _Asked(event.response or ResponseSettings(), event.event_id, by_client=True)
        if asked.settings.conversation == "none":
            if len(self._responses) - (self._active is not None) >= MAX_ALONE:
                text = f"At most {MAX_ALONE} responses outside of the conversation may run at once."
                raise ProtocolError("too_many_responses", text)
        elif (active := self._active) is not None:
            if active.cancelled_by is None or self._asked is not None:
                text = f"The conversation has an active response, {active.id}; wait for its end, or cancel it."
                raise ProtocolError("conversation_already_has_active_response", text)
            self._asked = asked
            return
        self._transcribe(self._start(asked))

    def _start(self, asked: _Asked) -> Response | None:
        """Begin a response; return None if there is nothing to answer and the client did not ask for it.

        Raises:
            ProtocolError: there is nothing to answer, or no room for an answer.
        """
        given, in_conversation = asked.settings.input, asked.settings.conversation != "none"
        items = self._items.to_answer() if given is None else self._given_items(asked.settings)
        question = question_of(items, self._limits.max_audio_seconds)
        if question is None:
            if not asked.by_client:
                return None
            text = "There is nothing to answer: no message of the user since the last answer."
            raise ProtocolError("no_question", text)
        if in_conversation:
            self._check_room()
            self._idle_from = None
        remembered = in_conversation and given is None
        response = self._new_response(asked.settings, remembered)
        if remembered:
            response.question = items
            self._items.settle(items, response.id)
        self._responses[response.id] = response
        self._send(response.created())
        most = response.config.max_output_tokens
        steps = None if most == "inf" else most
        self._do(StartAnswer(response.id, question, response.config.speaks, remembered, steps))
        return response

    def _start_late(self, asked: _Asked) -> None:
        """Begin a response that the client did not ask for just now."""
        try:
            self._start(asked)
        except ProtocolError as error:
            error.event_id = asked.event_id
            self._send(error.event())

    def _new_response(self, settings: ResponseSettings, remembered: bool) -> Response:
        output, given = self._config.output, settings.audio.output if settings.audio is not None else None
        if given is not None and given.format is not None:
            output["format"] = check_format(given.format, "response.audio.output.format")
        if given is not None and given.voice is not None:
            output["voice"] = given.voice
        config = ResponseConfig(
            output_modalities=settings.output_modalities or self._config.output_modalities,
            output=output,
            max_output_tokens=settings.max_output_tokens or self._config.max_output_tokens,
            metadata=settings.metadata,
        )
        response_id = self._new_id("resp")
        item = Item(self._new_id("item"), role="assistant", turn=response_id if remembered else None)
        conversation_id = None if settings.conversation == "none" else self._conversation_id
        return Response(response_id, item, config, conversation_id, remembered, self._out_rate)

    def _given_items(self, settings: ResponseSettings) -> list[Item]:
        """Return the user's messages at the end of a response's own input."""
        found: list[Item] = []
        for number, given in enumerate(settings.input or ()):
            path = f"response.input[{number}]"
            if given.type == "item_reference":
                item = self._items.get(given.id or "", "invalid_item_reference")
            else:
                audio = self._config.input_format, self._limits.max_audio_seconds
                item = item_from(given, self._new_id("item"), *audio, path)
            if item.role == "assistant":
                found.clear()
            elif item.role == "user":
                found.append(item)
        return found

    def _cancel_response(self, event: ResponseCancel) -> None:
        named = event.response_id
        response = self._active if named is None else self._responses.get(named)
        if response is None:
            text = "Cancellation failed: no such response is active."
            raise ProtocolError("response_cancel_not_active", text, None if named is None else "response_id")
        if response.cancelled_by is None:
            self._cancel(response, CLIENT_CANCELLED)

    def _cancel(self, response: Response, reason: str) -> None:
        response.cancelled_by = reason
        self._do(Cancel(response.id))
        if response.conversation_id is not None:
            self._stop_playing()

    def _chunk(self, response_id: str, text: str, samples: np.ndarray) -> None:
        response = self._responses.get(response_id)
        if response is None or response.cancelled_by is not None:
            return
        self._open_item(response)
        self._play(response, response.chunk(text, samples))

    def _open_item(self, response: Response) -> None:
        if response.opened:
            return
        if response.conversation_id is not None:
            self._items.add(response.item)
        self._send_all(response.open(self._previous(response)))

    def _previous(self, response: Response) -> str | None:
        return None if response.conversation_id is None else self._items.previous(response.item)

    def _play(self, response: Response, events: Iterable[Event]) -> None:
        before = response.item.sent_ms or 0.0
        self._send_all(events)
        seconds = ((response.item.sent_ms or 0.0) - before) / 1000
        if response.conversation_id is not None and seconds:
            self._played_until = max(self._played_until, self._now()) + seconds

    def _answered(self, response_id: str, end: str, usage: Usage) -> None:
        response = self._responses.get(response_id)
        if response is None:
            return
        status, details = response.ended(end)
        if response.cancelled_by is None:
            self._open_item(response)
            self._play(response, response.rest())
        elif not response.opened:
            self._ask_again(response, WAITING if response.cancelled_by == TURN_DETECTED else RETRY)
            if response.remembered:
                self._drop_edits(response.id)
                self._edits.append(Forget(response.id))
        self._finish(response, status, details, usage)

    def _failed(self, response_id: str, message: str, code: str) -> None:
        response = self._responses.get(response_id)
        if response is None:
            return
        kind = "server_error" if code.startswith("server") else "invalid_request_error"
        error = {"type": kind, "code": code, "message": message}
        self._drop_edits(response_id)
        cut_short = response.cancelled_by == TURN_DETECTED and not response.opened
        self._ask_again(response, WAITING if cut_short else RETRY)
        response.item.turn = None
        if response.cancelled_by is None:
            self._finish(response, "failed", {"type": "failed", "error": error}, Usage())
        else:
            self._finish(response, *response.ended(CANCELLED), Usage())

    def _ask_again(self, response: Response, state: str) -> None:
        """Let the question of a response that was not answered be asked by the next."""
        for item in response.question:
            if item.turn == response.id:
                item.state, item.turn = state, None

    def _finish(self, response: Response, status: str, details: Event | None, usage: Usage) -> None:
        if response.opened:
            previous = self._previous(response)
            self._send_all(response.close(previous, whole=status == "completed"))
        self._send(response.done(status, details, usage))
        del self._responses[response.id]
        if response.conversation_id is not None and not self._ending:
            self._go_to_next()

    def _go_to_next(self) -> None:
        """Carry out what has waited for the end of a response in the conversation."""
        edits, self._edits = self._edits, []
        for edit in edits:
            self._do(edit)
        asked, self._asked = self._asked, None
        self._wait_for_speech()
        if asked is not None:
            self._start_late(asked)

    # Transcripts.

    def _transcribe(self, response: Response | None = None) -> None:
        """Ask for the transcripts of what was said, with the features of an answer to exactly that."""
        for item in self._untranscribed:
            if item.id in self._items and len(samples := item.samples):
                shared = response is not None and response.question == [item]
                self._transcribing[item.id] = item
                self._do(Transcribe(item.id, restored(samples), response.id if shared else None))
        self._untranscribed = []

    def _transcribed(self, item_id: str, text: str) -> None:
        item = self._transcribing.pop(item_id, None)
        if item is None or item_id not in self._items:
            return
        item.content[0].transcript = text
        place = {"item_id": item_id, "content_index": 0}
        name = "conversation.item.input_audio_transcription"
        if text:
            self._send({"type": f"{name}.delta", **place, "delta": text})
        usage = {"type": "duration", "seconds": round(len(item.samples) / RATE, 3)}
        self._send({"type": f"{name}.completed", **place, "transcript": text, "usage": usage})

    def _not_transcribed(self, item_id: str, message: str) -> None:
        item = self._transcribing.pop(item_id, None)
        if item is None or item_id not in self._items:
            return
        error = {"type": "server_error", "code": "transcription_failed", "message": message}
        name = "conversation.item.input_audio_transcription.failed"
        self._send({"type": name, "item_id": item_id, "content_index": 0, "error": error})


def _is_past(item: Item) -> bool:
    """Whether an item is an answer, or a question that does not wait for one."""
    return item.role == "assistant" or (item.role == "user" and item.state != WAITING)


def _key(edit: Crop | Forget | Remember) -> str:
    return edit.response_id if isinstance(edit, Crop) else edit.key
