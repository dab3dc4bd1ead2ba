"""A Realtime session whose events and actions are checked as they come, for tests.

Every event must parse as one of the types of the package `openai`, and keep to the order that its documentation gives.
"""

from __future__ import annotations

import base64
import itertools
import json
import warnings
from typing import Any

import numpy as np
from openai.types.realtime.realtime_server_event import RealtimeServerEvent
from pydantic import BaseModel, TypeAdapter

from omnikit.serve.realtime.actions import (
    RATE,
    Action,
    Cancel,
    Close,
    Crop,
    Detect,
    Forget,
    Listen,
    Remember,
    Send,
    SpeechStarted,
    SpeechStopped,
    StartAnswer,
    Transcribe,
    Usage,
)
from omnikit.serve.realtime.session import RealtimeSession
from omnikit.serve.settings import ServerSettings

SERVER_EVENT = TypeAdapter(RealtimeServerEvent)
USAGE = Usage(input_text=30, input_audio=20, cached=12, output_text=5, output_audio=7)
OUT_RATE = 24000


def audio(ms: float, seed: int = 0) -> np.ndarray:
    """Return noise [n] (int16) of some milliseconds at `RATE`."""
    return np.random.default_rng(seed).integers(-3000, 3000, round(ms * RATE / 1000)).astype("<i2")


def base64_of(samples: np.ndarray) -> str:
    """Return samples as a client sends them."""
    return base64.b64encode(samples.tobytes()).decode()


class Checked:
    """A session with a clock of its own, whose actions are checked and collected.

    Args:
        limits: settings of the server that differ from the defaults.
    """

    def __init__(self, **limits: Any):
        self.time, self._ids = 0.0, itertools.count(1)
        self.settings = ServerSettings(**limits)
        self.session = RealtimeSession(
            "mini", self.settings, now=lambda: self.time, new_id=self._new_id, out_rate=OUT_RATE
        )
        self.actions: list[Action] = []
        self.events: list[dict[str, Any]] = []
        self.order = Order()
        self.take(self.session.opened())

    def _new_id(self, kind: str) -> str:
        return f"{kind}_{next(self._ids)}"

    def take(self, actions: list[Action]) -> list[dict[str, Any]]:
        """Check actions, and return the events that they send."""
        sent = []
        for action in actions:
            self.order.check(action)
            self.actions.append(action)
            if isinstance(action, Send):
                event = json.loads(json.dumps(action.event, allow_nan=False))
                parses(event)
                sent.append(event)
        self.events += sent
        return sent

    def send(self, type: str, **fields: Any) -> list[dict[str, Any]]:
        """Send an event of the client as JSON text."""
        return self.take(self.session.receive(json.dumps({"type": type, **fields})))

    def update(self, *, detection: Any = ..., **session: Any) -> list[dict[str, Any]]:
        """Change settings of the session."""
        if detection is not ...:
            session.setdefault("audio", {}).setdefault("input", {})["turn_detection"] = detection
        return self.send("session.update", session={"type": "realtime", **session})

    def append(self, ms: float, seed: int = 0) -> np.ndarray:
        """Append noise of some milliseconds, and return it [n] (int16)."""
        samples = audio(ms, seed)
        self.send("input_audio_buffer.append", audio=base64_of(samples))
        return samples

    def heard(self, *reports: Any) -> list[dict[str, Any]]:
        """Report what the detector hears."""
        return [event for report in reports for event in self.take(self.session.heard(report))]

    def turn(self, begin: float = 500.0, end: float = 2000.0, *, to: float = 2500.0) -> list[dict[str, Any]]:
        """Append audio, in which the detector finds a turn between two times in milliseconds."""
        self.append(to)
        return self.heard(SpeechStarted(begin, 32.0), SpeechStopped(end, end - begin))

    def chunk(self, text: str = "", ms: float = 0.0, answer: StartAnswer | None = None) -> list[dict[str, Any]]:
        """Report a chunk of an answer, the last one asked for if it is not given."""
        samples = audio(ms).astype(np.float32) / 32768
        return self.take(self.session.chunk((answer or self.answer).response_id, text, samples))

    def end(self, end: str = "end", answer: StartAnswer | None = None) -> list[dict[str, Any]]:
        """Report the end of an answer, the last one asked for if it is not given."""
        return self.take(self.session.answered((answer or self.answer).response_id, end, USAGE))

    def wait(self, seconds: float) -> list[dict[str, Any]]:
        """Let time pass."""
        self.time += seconds
        return self.take(self.session.tick())

    def found(self, kind: type) -> list[Any]:
        """Return all actions of a kind so far."""
        return [action for action in self.actions if isinstance(action, kind)]

    @property
    def answer(self) -> StartAnswer:
        """Answer that was asked for last."""
        return self.found(StartAnswer)[-1]


def parses(event: dict[str, Any]) -> None:
    """Check that an event is one of the types of the package `openai`, without anything that its type does not know."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parsed = SERVER_EVENT.validate_python(event)
    unknown(parsed, event["type"])


_OWN_FIELDS = {"object", "id"}  # of the session object, which its type lacks but OpenAI's server sends


def unknown(model: BaseModel, path: str) -> None:
    """Check that neither a model nor one within it has fields that its class lacks."""
    extra = set(model.model_extra or ()) - (_OWN_FIELDS if path.endswith(".session") else set())
    assert not extra, f"{path}: unknown fields {extra}"
    for name in type(model).model_fields:
        value = getattr(model, name)
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, BaseModel):
                unknown(inner, f"{path}.{name}")


class Order:
    """The rules that hold between the events and actions of a session, from its first to its last."""

    def __init__(self) -> None:
        self.closed = False
        self.event_ids: set[str] = set()
        self.items: list[str] = []  # the conversation as a client would build it
        self.unfinished: set[str] = set()  # items that were added and not done
        self.responses: dict[str, ResponseOrder] = {}
        self.committed: str | None = None  # item that must be added next
        self.speaking: str | None = None  # item of the speech that began
        self.answers: dict[str, StartAnswer] = {}
        self.cancelled: set[str] = set()
        self.keys: set[str] = set()  # turns that the system may remember
        self.transcribing: set[str] = set()
        self.last: str = ""

    @property
    def running(self) -> list[str]:
        """Ids of the responses that were created and are not done."""
        return [key for key, response in self.responses.items() if not response.done]

    @property
    def running_turns(self) -> list[str]:
        """Ids of the running responses that are remembered."""
        return [key for key in self.running if key in self.answers and self.answers[key].remembered]

    def check(self, action: Action) -> None:
        """Check that an action may follow on those before."""
        assert not self.closed, f"{action} after Close"
        if isinstance(action, Send):
            self.event(action.event)
        elif isinstance(action, StartAnswer):
            self.check_answer(action)
        elif isinstance(action, Cancel):
            assert action.response_id in self.answers and action.response_id not in self.cancelled
            assert not self.responses[action.response_id].done
            self.cancelled.add(action.response_id)
        elif isinstance(action, Crop):
            assert action.seconds >= 0 and action.response_id in self.keys and not self.running_turns
            assert self.answers[action.response_id].speak
        elif isinstance(action, Forget):
            assert action.key in self.keys and not self.running_turns
            self.keys.remove(action.key)
        elif isinstance(action, Remember):
            assert action.key not in self.keys and action.question and action.answer and not self.running_turns
            self.keys.add(action.key)
        elif isinstance(action, Transcribe):
            assert action.item_id in self.items and len(action.samples)
            assert action.response_id is None or action.response_id in self.running_turns
            self.transcribing.add(action.item_id)
        elif isinstance(action, Close):
            assert not self.running and len(action.reason.encode()) <= 123
            self.closed = True
        else:
            assert isinstance(action, Detect | Listen)

    def check_answer(self, answer: StartAnswer) -> None:
        """Check that an answer is that of a response just created, and the only one of the conversation."""
        assert answer.response_id not in self.answers and self.last == "response.created"
        assert self.running[-1] == answer.response_id
        self.answers[answer.response_id] = answer
        assert len(self.running_turns) <= 1
        if answer.remembered:
            self.keys.add(answer.response_id)

    def event(self, event: dict[str, Any]) -> None:
        """Check that an event may follow on those before."""
        kind = event["type"]
        assert event["event_id"] not in self.event_ids
        self.event_ids.add(event["event_id"])
        assert bool(self.last) == (kind != "session.created"), "session.created comes first and once"
        if self.committed is not None:
            assert kind == "conversation.item.added" and event["item"]["id"] == self.committed
        if kind.startswith("response."):
            self.response_event(kind, event)
        elif kind.startswith("conversation.item."):
            self.item_event(kind.removeprefix("conversation.item."), event)
        elif kind.startswith("input_audio_buffer."):
            self.buffer_event(kind.removeprefix("input_audio_buffer."), event)
        self.last = kind

    def buffer_event(self, kind: str, event: dict[str, Any]) -> None:
        """Check an event of the input audio buffer."""
        if kind == "speech_started":
            self.speaking = event["item_id"]
        elif kind == "speech_stopped":
            assert event["item_id"] == self.speaking and event["audio_end_ms"] >= 0
        elif kind == "committed":
            assert event["previous_item_id"] == (self.items[-1] if self.items else None)
            assert event["item_id"] not in self.items
            self.committed = event["item_id"]
            self.speaking = None

    def item_event(self, kind: str, event: dict[str, Any]) -> None:
        """Check an event of an item."""
        item_id = event.get("item_id") or event["item"]["id"]
        if kind == "added":
            assert item_id not in self.items
            before = event["previous_item_id"]
            self.items.insert(0 if before is None else self.items.index(before) + 1, item_id)
            self.unfinished.add(item_id)
            assert self.committed in (None, item_id)
            self.committed = None
            return
        assert item_id in self.items
        if kind == "done":
            at = self.items.index(item_id)
            assert event["previous_item_id"] == (self.items[at - 1] if at else None)
            assert event["item"]["status"] != "in_progress"
            self.unfinished.remove(item_id)
        elif kind == "deleted":
            assert item_id not in self.unfinished
            self.items.remove(item_id)
        elif kind.startswith("input_audio_transcription"):
            assert item_id in self.transcribing
            if not kind.endswith("delta"):
                self.transcribing.remove(item_id)

    def response_event(self, kind: str, event: dict[str, Any]) -> None:
        """Check an event of a response."""
        key = event["response"]["id"] if "response" in event else event["response_id"]
        if kind == "response.created":
            assert key not in self.responses
            self.responses[key] = ResponseOrder(event["response"])
        else:
            self.responses[key].check(kind.removeprefix("response."), event)


class ResponseOrder:
    """The order of the events of one response.

    Args:
        created: response object of `response.created`.
    """

    def __init__(self, created: dict[str, Any]):
        assert created["status"] == "in_progress" and created["output"] == [] and created["usage"] is None
        self.created, self.item, self.text, self.stage, self.done = created, None, "", 0, False
        speaks = created["output_modalities"] == ["audio"]
        text = "output_audio_transcript" if speaks else "output_text"
        self.deltas = (f"{text}.delta", "output_audio.delta") if speaks else (f"{text}.delta",)
        ends = ["output_audio.done", f"{text}.done"] if speaks else [f"{text}.done"]
        self.stages = ["output_item.added", "content_part.added", *ends, "content_part.done", "output_item.done"]

    def check(self, kind: str, event: dict[str, Any]) -> None:
        """Check that an event may follow on those before."""
        assert not self.done
        if kind == "done":
            assert self.stage in (0, len(self.stages))
            self.finish(event["response"])
        elif kind in self.deltas:
            assert self.stage == 2 and event["delta"]
            self.text += event["delta"] if "audio.delta" not in kind else ""
        else:
            assert self.stages[self.stage] == kind, f"{kind} in place of {self.stages[self.stage]}"
            self.stage += 1
        if kind == "output_item.added":
            assert event["item"]["content"] == [] and event["item"]["status"] == "in_progress"
            self.item = event["item"]["id"]
        if "item_id" in event:
            assert (event["item_id"], event["content_index"], event["output_index"]) == (self.item, 0, 0)
        if kind.endswith(("transcript.done", "text.done")):
            assert event.get("transcript", event.get("text")) == self.text

    def finish(self, response: dict[str, Any]) -> None:
        """Check the response object of `response.done`."""
        self.done = True
        status, details = response["status"], response["status_details"]
        assert status in ("completed", "cancelled", "incomplete", "failed")
        assert (details is None) == (status == "completed") and (details or {"type": status})["type"] == status
        assert [item["id"] for item in response["output"]] == ([self.item] if self.stage else [])
        usage = response["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        assert usage["input_token_details"]["cached_tokens_details"] is not None
        assert usage["output_token_details"] is not None
        for name in ("id", "metadata", "conversation_id", "output_modalities", "audio", "max_output_tokens"):
            assert response[name] == self.created[name]
