"""Test of the Realtime session in legal and illegal orders: whatever comes, its events and actions stay in order."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from omnikit.generate import CANCELLED, ENDS
from omnikit.serve.realtime.actions import (
    RATE,
    Cancel,
    Close,
    Idle,
    SpeechContinues,
    SpeechStarted,
    SpeechStopped,
    StartAnswer,
    Transcribe,
)
from tests.serve.checked_session import Checked, audio, base64_of

TEXTS = st.sampled_from(["", " ", "hello", "two plus two", "ä\u2028\U0001f600"])
DETECTIONS = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["server_vad", "semantic_vad"]),
            "create_response": st.booleans(),
            "interrupt_response": st.booleans(),
            "idle_timeout_ms": st.sampled_from([None, 500]),
            "threshold": st.sampled_from([0.1, 0.9, 5.0]),
            "eagerness": st.sampled_from(["high", "hasty"]),
        },
    ),
)
FORMATS = st.sampled_from(["audio/pcm", "audio/pcmu", "audio/pcma"])
MODALITIES = st.sampled_from([["audio"], ["text"], ["text", "audio"]])
PARTS = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["input_text", "output_text"]), "text": TEXTS}),
    st.builds(lambda ms: {"type": "input_audio", "audio": base64_of(audio(ms))}, st.sampled_from([0, 50, 700])),
    st.fixed_dictionaries({"type": st.just("output_audio"), "transcript": TEXTS}),
)
WRONG = [
    "", "{", "[]", '"x"', "{}", '{"type": null}', '{"type": "error"}', '{"type": "response.create", "response": 5}',
    '{"type": "input_audio_buffer.append", "audio": "AAA"}', '{"type": "session.update", "session": {"voice": "ash"}}',
    '{"type": "conversation.item.create", "item": {"type": "message"}}',
    '{"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": NaN}',
]  # fmt: skip
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


class SessionMachine(RuleBasedStateMachine):
    """A client, a detector and a system that each do anything they can do at any time, and some that they cannot.

    `Checked` holds the rules between the events; here stand those that need to know what was reported.
    """

    @initialize(interrupt_min_ms=st.sampled_from([0.0, 400.0]))
    def begin(self, interrupt_min_ms):
        limits = {"max_items": 12, "max_audio_seconds": 2.0, "session_minutes": 1.0, "idle_seconds": 30.0}
        self.session = Checked(interrupt_min_ms=interrupt_min_ms, **limits)
        self.reported: set[str] = set()  # answers whose end or error was reported
        self.sent: dict[str, str] = {}  # texts that were reported and must have been sent

    @property
    def running(self) -> list[StartAnswer]:
        """Answers that the system has not ended."""
        return [answer for answer in self.session.found(StartAnswer) if answer.response_id not in self.reported]

    @property
    def cancelled(self) -> set[str]:
        """Ids of the answers that are to be cancelled."""
        return {action.response_id for action in self.session.found(Cancel)}

    def some_item(self, number: int) -> str:
        """Return the id of an item of the conversation, or of none."""
        known = ["item_0", *self.session.order.items]
        return known[number % len(known)]

    # The client

    @rule(detection=DETECTIONS, transcription=st.sampled_from([None, {}, {"model": "whisper-1"}]))
    def set_turns(self, detection, transcription):
        self.session.update(detection=detection, audio={"input": {"transcription": transcription}})

    @rule(heard=FORMATS, said=FORMATS, modalities=MODALITIES, tokens=st.sampled_from(["inf", 5, 0]))
    def set_formats(self, heard, said, modalities, tokens):
        given = {"input": {"format": {"type": heard}}, "output": {"format": {"type": said}}}
        self.session.update(audio=given, output_modalities=modalities, max_output_tokens=tokens)

    @rule(ms=st.sampled_from([0.0, 1.0, 50.0, 300.0, 2500.0]), odd=st.booleans())
    def append(self, ms, odd):
        data = audio(ms).tobytes() + b"x" * odd
        self.session.send("input_audio_buffer.append", audio=base64.b64encode(data).decode())

    @rule(name=st.sampled_from(["commit", "clear"]))
    def buffer(self, name):
        self.session.send(f"input_audio_buffer.{name}")

    @rule(
        role=st.sampled_from(["user", "assistant", "system"]),
        content=st.lists(PARTS, max_size=2),
        at=st.none() | st.just("root") | st.integers(0, 9),
        own_id=st.none() | st.integers(0, 9) | st.just("root"),
    )
    def create_item(self, role, content, at, own_id):
        item = {"type": "message", "role": role, "content": content}
        if own_id is not None:
            item["id"] = own_id if own_id == "root" else f"own_{own_id}"
        previous = self.some_item(at) if isinstance(at, int) else at
        self.session.send("conversation.item.create", item=item, previous_item_id=previous)

    @rule(text=TEXTS)
    def write(self, text):
        part = {"type": "input_text", "text": text}
        self.session.send("conversation.item.create", item={"type": "message", "role": "user", "content": [part]})

    @rule(modalities=st.sampled_from([["audio"], ["audio"], ["text"]]), text=st.sampled_from(["four", ""]))
    def ask(self, modalities, text):
        self.write("two plus two")
        self.create_response(None, None, {"output_modalities": modalities})
        if text and self.running:
            self.chunk(-1, text, 200)

    @rule(ms=st.sampled_from([50, 700, 1900]), seconds=st.sampled_from([0.0, 3.0]))
    def speak(self, ms, seconds):
        self.wait(seconds)
        self.append(2500.0, odd=False)
        now = (self.session.session._buffer.end - self.session.session._detected_from) / RATE * 1000
        self.turn(max(0.0, now - 2000), float(ms))

    @precondition(lambda self: self.running)
    @rule(number=st.integers(0, 9), name=st.sampled_from(["delete", "truncate"]))
    def edit_during_an_answer(self, number, name):
        if name == "delete":
            self.use_item(-1 - number % 3, name)
        else:
            self.truncate(-1, number, 0)

    @rule(kind=st.sampled_from(["function_call", "function_call_output"]))
    def create_call(self, kind):
        item = {"type": kind, "call_id": "c", "name": "look", "arguments": "{}", "output": "rain"}
        self.session.send("conversation.item.create", item=item)

    @rule(number=st.integers(0, 9), name=st.sampled_from(["retrieve", "delete"]))
    def use_item(self, number, name):
        self.session.send(f"conversation.item.{name}", item_id=self.some_item(number))

    @rule(number=st.integers(0, 9), ms=st.sampled_from([0, 20, 100.5, 9000, -1]), index=st.sampled_from([0, 0, 0, 1]))
    def truncate(self, number, ms, index):
        item = self.some_item(number)
        self.session.send("conversation.item.truncate", item_id=item, content_index=index, audio_end_ms=ms)

    @rule(
        conversation=st.sampled_from([None, "auto", "none"]),
        given=st.none() | st.lists(TEXTS, max_size=2) | st.integers(0, 9),
        settings=st.fixed_dictionaries({}, optional={"output_modalities": MODALITIES, "metadata": st.just({"a": "b"})}),
    )
    def create_response(self, conversation, given, settings):
        response = {**settings, "conversation": conversation}
        if isinstance(given, int):
            response["input"] = [{"type": "item_reference", "id": self.some_item(given)}]
        elif given is not None:
            part = "input_text"
            response["input"] = [
                {"type": "message", "role": "user", "content": [{"type": part, "text": text}]} for text in given
            ]
        self.session.send("response.create", response=response)

    @rule(number=st.none() | st.integers(0, 5))
    def cancel(self, number):
        known = [*self.session.order.responses, "resp_0"]
        name = {} if number is None else {"response_id": known[number % len(known)]}
        self.session.send("response.cancel", **name)

    @rule(raw=st.sampled_from(WRONG))
    def say_nonsense(self, raw):
        self.nonsense(raw)

    @rule(
        kind=st.sampled_from(["session.update", "conversation.item.create", "conversation.item.delete"]),
        field=st.sampled_from(["session", "item", "item_id", "event_id"]),
        value=JSON,
    )
    def say_what_may_be_nonsense(self, kind, field, value):
        events = self.session.take(self.session.session.receive(json.dumps({"type": kind, field: value})))
        assert events or self.session.order.closed

    def nonsense(self, raw: str) -> None:
        """Send what is no event."""
        if not self.session.order.closed:
            [event] = self.session.take(self.session.session.receive(raw))
            assert event["type"] == "error"

    # The detector

    @rule(begin=st.floats(0, 4000), length=st.sampled_from([32.0, 320.0, 900.0, 2600.0]))
    def turn(self, begin, length):
        reports = SpeechStarted(begin, 32.0), SpeechContinues(length), SpeechStopped(begin + length, length)
        self.session.heard(*reports)

    @rule(
        report=st.one_of(
            st.builds(SpeechStarted, st.floats(0, 10_000), st.floats(0, 3000)),
            st.builds(SpeechContinues, st.floats(0, 5000)),
            st.builds(SpeechStopped, st.floats(0, 10_000), st.floats(0, 3000)),
            st.builds(Idle, st.floats(0, 10_000)),
        )
    )
    def hear(self, report):
        self.session.heard(report)

    # The system

    @precondition(lambda self: self.running)
    @rule(number=st.integers(0, 5), text=st.sampled_from(["", "four", " more"]), ms=st.sampled_from([0, 40, 2000]))
    def chunk(self, number, text, ms):
        answer = self.running[number % len(self.running)]
        events = self.session.chunk(text, ms if answer.speak else 0, answer)
        if answer.response_id in self.cancelled or self.session.order.closed:
            assert events == []
        else:
            self.sent[answer.response_id] = self.sent.get(answer.response_id, "") + text

    @precondition(lambda self: self.running)
    @rule(number=st.integers(0, 5), end=st.sampled_from(ENDS), error=st.sampled_from([None, None, "server_busy"]))
    def end(self, number, end, error):
        self.finish(self.running[number % len(self.running)], end, error)

    @rule()
    def report_on_nothing(self):
        session, nothing = self.session.session, np.zeros(0, np.float32)
        known = next(iter(self.reported), "resp_0")
        assert session.chunk(known, "x", nothing) == session.failed(known, "x") == []
        assert session.transcribed("item_0", "x") == session.not_transcribed("item_0", "x") == []

    @precondition(lambda self: self.session.order.transcribing)
    @rule(text=TEXTS, works=st.booleans())
    def transcribe(self, text, works):
        for item in sorted(self.session.order.transcribing):
            asked = [action for action in self.session.found(Transcribe) if action.item_id == item]
            assert len(asked) == 1
            session = self.session.session
            self.session.take(session.transcribed(item, text) if works else session.not_transcribed(item, text))
        if not self.session.order.closed:
            # Transcripts of items that were deleted are dropped.
            assert not self.session.order.transcribing & set(self.session.order.items)
        self.session.order.transcribing.clear()

    # Time

    @rule(seconds=st.sampled_from([0.1, 1.0, 1.0, 1.0, 5.0, 31.0]))
    def wait(self, seconds):
        self.session.wait(seconds)

    def finish(self, answer: StartAnswer, end: str, error: str | None) -> None:
        """End an answer, and check what becomes of its response."""
        key, closed = answer.response_id, self.session.order.closed
        self.reported.add(key)
        if error is None:
            events = self.session.end(end, answer)
        else:
            events = self.session.take(self.session.session.failed(key, "Too busy.", error))
        done = [event["response"] for event in events if event["type"] == "response.done"]
        if closed:
            assert events == []
            return
        [response] = done
        expected = "cancelled" if key in self.cancelled or (end == CANCELLED and error is None) else None
        expected = expected or ("failed" if error else "completed" if end == "end" else "incomplete")
        assert response["id"] == key and response["status"] == expected
        assert self.session.order.responses[key].text == self.sent.get(key, "")

    @invariant()
    def responses_are_running_answers(self):
        if hasattr(self, "session") and not self.session.order.closed:
            assert self.session.order.running == [answer.response_id for answer in self.running]

    @invariant()
    def little_is_kept(self):
        if hasattr(self, "session"):
            assert len(self.session.session._buffer) <= 70 * RATE
            assert len(self.session.order.items) <= 12 + 5

    def teardown(self):
        if not hasattr(self, "session"):
            return
        while self.running:
            self.finish(self.running[0], CANCELLED, None)
        order = self.session.order
        assert not order.running and not order.unfinished and order.committed is None
        assert [isinstance(action, Close) for action in self.session.actions].count(True) == order.closed
        assert self.session.session.closed() == [] and self.session.session.tick() == []


def test_the_session_keeps_to_the_protocol_in_any_order():
    run(examples=40, steps=40)


@pytest.mark.long
def test_the_session_keeps_to_the_protocol_in_many_orders():
    run(examples=3000, steps=60)


def run(examples: int, steps: int) -> None:
    """Run the machine with as many examples of as many steps, the same at each run."""
    health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    options = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=True, database=None,
        suppress_health_check=health, phases=[Phase.generate],  # to shrink an example takes minutes
    )  # fmt: skip
    run_state_machine_as_test(SessionMachine, settings=options)
