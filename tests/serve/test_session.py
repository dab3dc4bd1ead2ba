"""Tests of the Realtime session: each turn, event and limit of the protocol by itself."""

from __future__ import annotations

import base64
import json
import sys

import numpy as np
import pytest

from omnikit.generate import CANCELLED, END, ENDS, STEP_LIMIT, TIME_LIMIT
from omnikit.serve.audio_formats import InputAudio, OutputAudio
from omnikit.serve.realtime import response as response_file
from omnikit.serve.realtime.actions import (
    RATE,
    Cancel,
    Close,
    Crop,
    Detect,
    Detection,
    Forget,
    Idle,
    Listen,
    Remember,
    SpeechContinues,
    SpeechStarted,
    SpeechStopped,
    SpokenQuestion,
    StartAnswer,
    Transcribe,
    WrittenQuestion,
)
from omnikit.serve.realtime.session import LAG_SECONDS, MAX_ALONE
from tests.serve.checked_session import Checked, audio, base64_of

VAD_TURN = [
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.added",
    "conversation.item.done",
    "response.created",
]
BEGIN_ANSWER = ["response.output_item.added", "conversation.item.added", "response.content_part.added"]
DELTAS = ["response.output_audio_transcript.delta", "response.output_audio.delta"]
END_ANSWER = [
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]


def types(events: list[dict]) -> list[str]:
    """Return the types of events."""
    return [event["type"] for event in events]


def error(events: list[dict]) -> dict:
    """Return the error of an answer that consists of one error."""
    assert types(events) == ["error"]
    assert events[0]["error"]["type"] == "invalid_request_error" and events[0]["error"]["message"]
    return events[0]["error"]


def user_text(text: str, **fields: object) -> dict:
    """Return a written item of the user."""
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}], **fields}


def assistant_text(text: str, **fields: object) -> dict:
    """Return a written item of the assistant."""
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}], **fields}


def written(session: Checked, text: str = "hello", **fields: object) -> str:
    """Add a written item of the user, and return its id."""
    return session.send("conversation.item.create", item=user_text(text, **fields))[0]["item"]["id"]


def answered(session: Checked, text: str = "four", ms: float = 1000.0) -> str:
    """Let the last answer be given, and return the id of its item."""
    events = session.chunk(text, ms) + session.end()
    return events[0]["item"]["id"]


@pytest.fixture
def session() -> Checked:
    return Checked()


@pytest.fixture
def manual() -> Checked:
    session = Checked()
    session.update(detection=None)
    return session


# Settings


def test_a_session_begins_with_its_settings_and_a_detector(session):
    shown = session.events[0]["session"]
    assert (shown["type"], shown["model"], shown["output_modalities"]) == ("realtime", "mini", ["audio"])
    assert shown["audio"]["input"]["turn_detection"]["type"] == "server_vad"
    assert session.found(Detect) == [Detect(Detection())]


def test_an_update_changes_what_it_names_and_echoes_what_has_no_effect(session):
    tools = [{"type": "function", "name": "look", "parameters": {"type": "object"}}]
    session.update(instructions="Be brief.", tools=tools, tool_choice="none", max_output_tokens=99)
    output = {"voice": "marin", "speed": 1.25, "format": {"type": "audio/pcmu"}}
    [updated] = session.update(detection={"type": "server_vad", "threshold": 0.7}, audio={"output": output})
    shown = updated["session"]
    assert (shown["instructions"], shown["tools"], shown["tool_choice"]) == ("Be brief.", tools, "none")
    assert shown["max_output_tokens"] == 99 and shown["audio"]["output"] == output
    detection = shown["audio"]["input"]["turn_detection"]
    assert (detection["threshold"], detection["silence_duration_ms"], detection["create_response"]) == (0.7, 500, True)
    [updated] = session.update(detection={"silence_duration_ms": 900}, instructions="")
    detection = updated["session"]["audio"]["input"]["turn_detection"]
    assert (detection["threshold"], detection["silence_duration_ms"]) == (0.7, 900)
    assert (updated["session"]["instructions"], updated["session"]["audio"]["output"]["voice"]) == ("", "marin")
    assert session.found(Detect)[1:] == [Detect(Detection(0.7)), Detect(Detection(0.7, silence_ms=900))]


def test_an_update_that_changes_no_detection_leaves_the_detector(session):
    session.update(instructions="x")
    session.update(detection={"type": "server_vad"})
    assert len(session.found(Detect)) == 1


def test_an_update_of_the_detection_leaves_the_turn_and_its_clock(session):
    session.append(500)
    session.update(detection={"silence_duration_ms": 300})
    samples = session.append(3000, seed=5)
    [started] = session.heard(SpeechStarted(700.0, 32.0), SpeechContinues(900.0))
    session.update(detection={"type": "semantic_vad", "eagerness": "low"})
    events = session.heard(SpeechStopped(2400.0, 1500.0))
    assert types(events) == VAD_TURN[1:] and events[0]["item_id"] == started["item_id"]
    assert (started["audio_start_ms"], events[0]["audio_end_ms"]) == (700, 2400)
    assert np.array_equal(session.answer.question.samples, samples[200 * 24 : 1900 * 24].astype(np.float32) / 32768)


@pytest.mark.parametrize(("eagerness", "silence"), [("low", 1200), ("medium", 800), ("high", 400), ("auto", 800)])
def test_semantic_vad_is_the_same_detector_with_its_own_pauses(session, eagerness, silence):
    session.update(detection={"type": "semantic_vad", "eagerness": eagerness})
    assert session.found(Detect)[-1] == Detect(Detection(silence_ms=silence))


def test_null_turns_off_or_sets_the_default(session):
    given = {"transcription": {"model": "whisper-1"}, "noise_reduction": {"type": "near_field"}}
    session.update(audio={"input": given, "output": {"voice": "ash"}}, max_output_tokens=5, tools=[{"name": "x"}])
    [updated] = session.update(
        detection=None, audio={"input": {"transcription": None}, "output": None}, max_output_tokens=None, tools=None
    )
    shown = updated["session"]
    assert (shown["max_output_tokens"], shown["tools"]) == ("inf", [])
    assert shown["audio"]["input"]["turn_detection"] is None and shown["audio"]["input"]["transcription"] is None
    assert shown["audio"]["input"]["noise_reduction"] == {"type": "near_field"}
    assert shown["audio"]["output"]["voice"] == "ash"
    assert session.found(Detect)[-1] == Detect(None)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"type": "transcription"}, "unsupported_session_type", "session.type"),
        ({"type": "other"}, "invalid_value", "session.type"),
        ({"output_modalities": ["text", "audio"]}, "invalid_value", "session.output_modalities"),
        ({"output_modalities": "audio"}, "invalid_type", "session.output_modalities"),
        ({"max_output_tokens": 0}, "invalid_value", "session.max_output_tokens"),
        ({"max_output_tokens": True}, "invalid_value", "session.max_output_tokens"),
        ({"instructions": 5}, "invalid_type", "session.instructions"),
        ({"instructions": "x" * 70_000}, "string_above_max_length", "session.instructions"),
        ({"tools": [{"x": "x" * 70_000}]}, "invalid_value", "session.tools"),
        ({"audio": {"input": {"format": {"type": "audio/mp3"}}}}, "invalid_value", "session.audio.input.format.type"),
        ({"audio": {"input": {"format": "pcm16"}}}, "invalid_type", "session.audio.input.format"),
        (
            {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}},
            "invalid_value",
            "session.audio.input.format.rate",
        ),
        (
            {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 2}}}},
            "invalid_value",
            "session.audio.input.turn_detection.threshold",
        ),
        ({"audio": {"output": {"speed": 9}}}, "invalid_value", "session.audio.output.speed"),
        ({"audio": {"output": {"voice": 9}}}, "invalid_value", "session.audio.output.voice"),
    ],
)
def test_wrong_settings_are_refused_and_change_nothing(session, change, code, param):
    before = session.events[0]["session"]
    found = error(session.send("session.update", event_id="mine", session={"type": "realtime", **change}))
    assert (found["code"], found["param"], found["event_id"]) == (code, param, "mine")
    assert session.update()[0]["session"] == before


def test_settings_that_are_nested_too_deeply_to_be_copied_are_refused(session):
    nested = '{"a": ' * 900 + "1" + "}" * 900
    raw = f'{{"type": "session.update", "session": {{"type": "realtime", "tools": [{nested}]}}}}'
    assert error(session.take(session.session.receive(raw)))["param"] == "session.tools"


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("modalities", "output_modalities"),
        ("voice", "audio.output.voice"),
        ("input_audio_format", "audio.input.format"),
        ("output_audio_format", "audio.output.format"),
        ("input_audio_transcription", "audio.input.transcription"),
        ("turn_detection", "audio.input.turn_detection"),
        ("max_response_output_tokens", "max_output_tokens"),
        ("speed", "audio.output.speed"),
    ],
)
def test_names_of_the_beta_protocol_are_refused_with_the_new_name(session, name, new):
    found = error(session.send("session.update", session={name: "pcm16"}))
    assert found["code"] == "unknown_parameter" and f"session.{new}" in found["message"]


def test_beta_names_in_responses_and_items_are_refused_with_the_new_name(session):
    assert "response.output_modalities" in error(session.send("response.create", response={"modalities": ["text"]}))[
        "message"
    ]
    item = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "hi"}]}
    assert "output_text" in error(session.send("conversation.item.create", item=item))["message"]
    assert "output_text" in error(session.send("response.create", response={"input": [item]}))["message"]


# Events that cannot be understood


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ("[1]", "invalid_json"),
        ("null", "invalid_json"),
        ('"x"', "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ('{"type": NaN}', "invalid_json"),
        ('{"type": "conversation.item.delete", "item_id": "\\ud800"}', "invalid_json"),
        ("9" * 10_000, "invalid_json"),
        ("{}", "missing_required_parameter"),
        ('{"type": 5}', "unknown_event"),
        ('{"type": ["response.create"]}', "unknown_event"),
        ('{"type": "response.creat"}', "unknown_event"),
        ('{"type": "transcription_session.update"}', "unsupported_session_type"),
        ('{"type": "output_audio_buffer.clear"}', "unsupported_event"),
        ('{"type": "session.update"}', "missing_required_parameter"),
        ('{"type": "session.update", "session": []}', "invalid_type"),
        ('{"type": "input_audio_buffer.append"}', "missing_required_parameter"),
        ('{"type": "input_audio_buffer.append", "audio": 5}', "invalid_type"),
        ('{"type": "input_audio_buffer.append", "audio": "AAA"}', "invalid_value"),
        ('{"type": "input_audio_buffer.append", "audio": "ä"}', "invalid_value"),
        ('{"type": "conversation.item.create", "item": {"type": "message", "content": 5}}', "invalid_type"),
        ('{"type": "conversation.item.truncate", "item_id": "a", "content_index": 0, "audio_end_ms": 1e999}',
         "invalid_value"),
        ('{"type": "response.create", "response": {"metadata": {"a": 5}}}', "invalid_type"),
    ],
)  # fmt: skip
def test_an_event_that_is_none_is_an_error_after_which_the_session_goes_on(session, raw, code):
    found = error(session.take(session.session.receive(raw)))
    assert found["code"] == code and len(found["message"]) < 500
    assert types(session.update()) == ["session.updated"]


def test_an_error_names_the_event_that_caused_it(session):
    assert error(session.send("nonsense", event_id="e1"))["event_id"] == "e1"
    assert error(session.send("input_audio_buffer.commit", event_id="e2"))["event_id"] == "e2"
    assert error(session.send("input_audio_buffer.commit"))["event_id"] is None
    assert error(session.send("input_audio_buffer.commit", event_id=5))["event_id"] is None


def test_the_session_takes_parsed_events_too(session):
    for change, answer in [({}, "session.updated"), ({"tools": [{"x": float("nan")}]}, "error")]:
        event = {"type": "session.update", "session": change}
        assert types(session.take(session.session.receive(event))) == [answer]


# Turns that are detected


def test_a_detected_turn_is_answered(session):
    samples = session.append(2500)
    [listen] = session.found(Listen)
    assert np.array_equal(listen.samples, samples.astype(np.float32) / 32768)
    started = session.heard(SpeechStarted(500.0, 32.0))
    assert [started[0]["audio_start_ms"]] == [500]
    events = started + session.heard(SpeechContinues(900.0), SpeechStopped(2000.0, 1100.0))
    assert types(events) == VAD_TURN
    assert events[1]["audio_end_ms"] == 2000
    assert len({events[0]["item_id"], events[1]["item_id"], events[2]["item_id"], events[3]["item"]["id"]}) == 1
    answer = session.answer
    assert answer.speak and answer.remembered and answer.max_steps is None
    assert np.array_equal(answer.question.samples, samples[500 * 24 : 2000 * 24].astype(np.float32) / 32768)
    assert types(session.chunk("fo", 100)) == BEGIN_ANSWER + DELTAS
    assert types(session.chunk("ur")) == DELTAS[:1]
    assert types(session.chunk("", 80)) == DELTAS[1:]
    closing = session.end()
    assert types(closing) == END_ANSWER
    done = closing[-1]["response"]
    assert (done["status"], done["status_details"]) == ("completed", None)
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": "four"}]
    assert done["usage"]["input_token_details"]["text_tokens"] == 30
    assert done["usage"]["output_token_details"] == {"text_tokens": 5, "audio_tokens": 7}


def test_the_detectors_clock_begins_where_it_was_set_up(session):
    session.append(1000)
    session.update(detection=None)
    session.append(400)
    session.update(detection={"type": "server_vad"})
    samples = session.append(2000, seed=5)
    events = session.heard(SpeechStarted(100.0, 32.0), SpeechStopped(1100.0, 900.0))
    assert (events[0]["audio_start_ms"], events[1]["audio_end_ms"]) == (1500, 2500)
    assert np.array_equal(session.answer.question.samples, samples[100 * 24 : 1100 * 24].astype(np.float32) / 32768)


def test_a_file_that_arrives_at_once_can_hold_several_turns(session):
    samples = session.append(10_000)
    session.heard(SpeechStarted(500.0, 32.0), SpeechStopped(2000.0, 1400.0))
    answered(session)
    session.time += 5
    session.heard(SpeechStarted(7000.0, 32.0), SpeechStopped(9000.0, 1900.0))
    assert np.array_equal(session.answer.question.samples, samples[7000 * 24 : 9000 * 24].astype(np.float32) / 32768)


def test_without_create_response_a_turn_waits_for_the_client(session):
    session.update(detection={"type": "server_vad", "create_response": False})
    assert types(session.turn()) == VAD_TURN[:-1]
    assert session.found(StartAnswer) == []
    assert types(session.send("response.create")) == ["response.created"]
    assert isinstance(session.answer.question, SpokenQuestion)


def test_reports_without_a_turn_are_ignored(session):
    session.append(500)
    assert session.heard(SpeechContinues(300.0), SpeechStopped(400.0, 300.0), Idle(500.0)) == []
    session.update(detection=None)
    assert session.heard(SpeechStarted(0.0, 300.0), SpeechStopped(400.0, 300.0)) == []


def test_a_turn_is_committed_at_the_longest_length_and_the_rest_of_it_is_not_heard():
    session = Checked(max_audio_seconds=2.0)
    session.append(5000)
    events = session.heard(SpeechStarted(500.0, 32.0), SpeechContinues(2000.0), SpeechContinues(2500.0))
    assert types(events) == VAD_TURN and events[1]["audio_end_ms"] == 2500
    assert len(session.answer.question.samples) == 2 * RATE
    assert session.heard(SpeechContinues(4000.0), SpeechStopped(4900.0, 4000.0)) == []
    answered(session, ms=10)
    session.time += 1
    session.append(3000)
    assert types(session.heard(SpeechStarted(5500.0, 32.0), SpeechStopped(7900.0, 500.0))) == VAD_TURN
    assert len(session.answer.question.samples) == 2 * RATE


def test_what_nobody_said_is_not_kept(session):
    for _ in range(30):
        session.append(5000)
    assert len(session.session._buffer) <= (LAG_SECONDS + 5) * RATE
    session.heard(SpeechStarted(149_000.0, 900.0))
    for _ in range(20):
        session.append(5000)
    assert len(session.session._buffer) <= (LAG_SECONDS + 35) * RATE
    assert types(session.events[-6:]) == VAD_TURN


# Speech over an answer


def test_speech_over_an_answer_interrupts_it(session):
    session.turn()
    session.chunk("four", 3000)
    session.append(2000)
    assert session.heard(SpeechStarted(3000.0, 32.0), SpeechContinues(200.0), SpeechContinues(390.0)) == []
    events = session.heard(SpeechContinues(410.0))
    assert types(events) == VAD_TURN[:1] and events[0]["audio_start_ms"] == 3000
    assert session.found(Cancel) == [Cancel(session.answer.response_id)]
    assert session.chunk("more", 100) == []
    closing = session.end(CANCELLED)
    assert types(closing) == END_ANSWER
    done = closing[-1]["response"]
    assert (done["status"], done["status_details"]) == ("cancelled", {"type": "cancelled", "reason": "turn_detected"})
    assert done["output"][0]["status"] == "incomplete" and done["usage"]["total_tokens"] == 62
    assert types(session.heard(SpeechStopped(4400.0, 1200.0))) == VAD_TURN[1:]
    assert session.found(Forget) == [] and len(session.answer.question.samples) == 1400 * 24


def test_an_interrupted_answer_that_was_generated_before_is_not_cancelled(session):
    session.turn()
    answered(session, ms=3000)
    session.time += 1
    session.append(2000)
    assert session.heard(SpeechStarted(3000.0, 32.0)) == []
    assert types(session.heard(SpeechContinues(500.0))) == VAD_TURN[:1]
    assert session.found(Cancel) == []
    # The client stops playing, so that the next speech is not over an answer.
    session.heard(SpeechStopped(4000.0, 700.0))
    answered(session, ms=0)
    assert types(session.heard(SpeechStarted(4200.0, 32.0))) == VAD_TURN[:1]


def test_a_backchannel_over_an_answer_leaves_no_trace(session):
    session.turn()
    session.chunk("four", 3000)
    before = len(session.actions)
    assert session.heard(SpeechStarted(2100.0, 32.0), SpeechContinues(300.0), SpeechStopped(2500.0, 320.0)) == []
    assert len(session.actions) == before
    session.end()
    session.time += 10
    assert types(session.heard(SpeechStarted(2200.0, 32.0))) == VAD_TURN[:1]


def test_speech_that_outlasts_the_answer_is_announced_when_it_is_over(session):
    session.turn()
    answered(session, ms=1000)
    session.append(2000)
    session.time += 0.9
    assert session.heard(SpeechStarted(2600.0, 32.0), SpeechContinues(90.0)) == []
    session.time += 0.2
    assert types(session.heard(SpeechContinues(190.0))) == VAD_TURN[:1]


def test_the_end_of_speech_counts_even_if_its_going_on_was_not_reported(session):
    session.turn()
    session.chunk("four", 3000)
    session.append(2000)
    assert types(session.heard(SpeechStarted(2600.0, 32.0), SpeechStopped(3600.0, 700.0))) == VAD_TURN[:-1]
    assert len(session.found(StartAnswer)) == 1
    assert types(session.end(CANCELLED))[-2:] == ["response.done", "response.created"]
    assert len(session.found(StartAnswer)) == 2


def test_without_interrupt_response_the_answer_goes_on_and_the_turn_is_answered_after_it(session):
    session.update(detection={"type": "server_vad", "interrupt_response": False})
    session.turn()
    session.chunk("fo", 100)
    session.append(2000)
    assert types(session.heard(SpeechStarted(2600.0, 500.0), SpeechStopped(3600.0, 700.0))) == VAD_TURN[:-1]
    assert session.found(Cancel) == []
    session.chunk("ur", 100)
    assert types(session.end())[-2:] == ["response.done", "response.created"]
    assert len(session.answer.question.samples) == 1000 * 24


def test_a_speaker_who_paused_before_the_answer_began_is_answered_as_a_whole(session):
    session.turn()
    first = session.answer
    session.append(2000)
    session.heard(SpeechStarted(2600.0, 500.0))
    assert session.found(Cancel) == [Cancel(first.response_id)]
    done = session.end(CANCELLED)
    assert types(done) == ["response.done"] and done[0]["response"]["output"] == []
    assert session.found(Forget) == [Forget(first.response_id)]
    session.heard(SpeechStopped(3600.0, 900.0))
    assert len(session.answer.question.samples) == (1500 + 1000) * 24


# Push to talk


def test_a_committed_turn_is_answered_when_the_client_asks(manual):
    samples = manual.append(1500)
    assert manual.found(Listen) == []
    committed = manual.send("input_audio_buffer.commit")
    assert types(committed) == VAD_TURN[2:5] and committed[0]["previous_item_id"] is None
    assert types(manual.send("response.create")) == ["response.created"]
    assert np.array_equal(manual.answer.question.samples, samples.astype(np.float32) / 32768)
    item = answered(manual)
    manual.append(200)
    assert manual.send("input_audio_buffer.commit")[0]["previous_item_id"] == item
    manual.send("response.create")
    assert len(manual.answer.question.samples) == 200 * 24


def test_cancelling_without_a_response_is_a_mild_error(manual):
    found = error(manual.send("response.cancel", event_id="x"))
    assert (found["code"], found["event_id"]) == ("response_cancel_not_active", "x")
    assert found["message"].startswith("Cancellation failed")  # LiveKit ignores errors that begin so
    assert error(manual.send("response.cancel", response_id="resp_0"))["code"] == "response_cancel_not_active"


@pytest.mark.parametrize("ms", [0, 99])
def test_a_commit_of_too_little_is_refused_and_the_audio_stays(manual, ms):
    manual.append(ms)
    assert error(manual.send("input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"
    manual.append(100)
    manual.send("input_audio_buffer.commit")
    manual.send("response.create")
    assert len(manual.answer.question.samples) == (ms + 100) * 24


def test_a_cleared_buffer_is_empty(manual):
    manual.append(1000)
    assert types(manual.send("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    assert error(manual.send("input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"


def test_half_a_sample_is_kept_for_the_next_append_and_dropped_with_the_buffer(manual):
    data = audio(200).tobytes()
    for part in (data[:4801], data[4801:]):
        manual.send("input_audio_buffer.append", audio=base64.b64encode(part).decode())
    manual.send("input_audio_buffer.append", audio=base64.b64encode(b"x").decode())
    manual.send("input_audio_buffer.commit")
    manual.append(200)
    manual.send("input_audio_buffer.commit")
    manual.send("response.create")
    expected = np.concatenate([audio(200), audio(200)]).astype(np.float32) / 32768
    assert np.array_equal(manual.answer.question.samples, expected)


def test_a_commit_that_is_too_long_is_refused_and_the_buffer_cleared():
    session = Checked(max_audio_seconds=1.0)
    session.update(detection=None)
    for _ in range(5):
        session.append(700)
    assert len(session.session._buffer) <= 3 * RATE
    assert error(session.send("input_audio_buffer.commit"))["code"] == "audio_too_long"
    assert error(session.send("input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"
    session.append(900)
    assert types(session.send("input_audio_buffer.commit"))[0] == "input_audio_buffer.committed"


@pytest.mark.parametrize(("form", "size"), [("audio/pcm", 15 * 2**20 + 2), ("audio/pcmu", 3 * 2**20)])
def test_an_append_is_at_most_15_mib_of_pcm_or_as_long(manual, form, size):
    manual.update(audio={"input": {"format": {"type": form}}})
    audio = base64.b64encode(bytes(size)).decode()
    assert error(manual.send("input_audio_buffer.append", audio=audio))["code"] == "audio_too_large"


def test_turning_detection_off_keeps_the_speech_that_has_begun_and_nothing_else(session):
    session.append(1000)
    session.update(detection=None)
    assert error(session.send("input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"
    session.update(detection={"type": "server_vad"})
    session.append(1000)
    session.heard(SpeechStarted(400.0, 100.0))
    session.update(detection=None)
    session.append(300)
    session.send("input_audio_buffer.commit")
    session.send("response.create")
    assert len(session.answer.question.samples) == 900 * 24


def test_a_client_may_commit_and_clear_during_detected_speech(session):
    session.append(1000)
    [started] = session.heard(SpeechStarted(400.0, 100.0))
    events = session.send("input_audio_buffer.commit")
    assert types(events) == VAD_TURN[2:5] and events[0]["item_id"] == started["item_id"]
    assert session.heard(SpeechContinues(900.0), SpeechStopped(1000.0, 900.0)) == []
    session.append(1000)
    session.heard(SpeechStarted(1200.0, 100.0))
    session.send("input_audio_buffer.clear")
    assert session.heard(SpeechStopped(1900.0, 700.0)) == []


@pytest.mark.parametrize("form", ["audio/pcmu", "audio/pcma"])
def test_telephone_audio_goes_in_and_out(manual, form):
    manual.update(audio={"input": {"format": {"type": form}}, "output": {"format": {"type": form}}})
    tone = np.sin(np.arange(RATE) * 2 * np.pi * 440 / RATE).astype(np.float32) / 2
    data = OutputAudio(form, RATE).push(tone)
    for part in (data[:3333], data[3333:]):
        manual.send("input_audio_buffer.append", audio=base64.b64encode(part).decode())
    manual.send("input_audio_buffer.commit")
    manual.send("response.create")
    question = manual.answer.question.samples
    assert abs(len(question) - RATE) < RATE * 0.02
    middle = slice(4000, 20000)
    assert np.corrcoef(question[middle], tone[middle])[0, 1] > 0.99
    events = manual.take(manual.session.chunk(manual.answer.response_id, "", tone)) + manual.end()
    sent = b"".join(base64.b64decode(e["delta"]) for e in events if e["type"] == "response.output_audio.delta")
    assert abs(len(sent) - 8000) <= 1
    item = events[0]["item"]["id"]
    assert types(manual.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=1000))
    assert error(manual.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=1002))


# Responses


def test_several_items_are_one_question(manual):
    for seed in (1, 2):
        manual.append(300, seed)
        manual.send("input_audio_buffer.commit")
    manual.send("response.create")
    expected = np.concatenate([audio(300, 1), audio(300, 2)]).astype(np.float32) / 32768
    assert np.array_equal(manual.answer.question.samples, expected)
    answered(manual)
    written(manual, "what is")
    written(manual, " two plus two ")
    manual.send("response.create")
    assert manual.answer.question == WrittenQuestion("what is two plus two")


def test_of_spoken_and_written_items_the_kind_of_the_last_is_answered(manual):
    written(manual, "hello")
    manual.append(300)
    manual.send("input_audio_buffer.commit")
    manual.send("response.create")
    assert len(manual.answer.question.samples) == 300 * 24
    answered(manual)
    manual.append(300)
    manual.send("input_audio_buffer.commit")
    written(manual, "hello")
    manual.send("response.create")
    assert manual.answer.question == WrittenQuestion("hello")


def test_joined_speech_is_not_longer_than_one_question_may_be():
    session = Checked(max_audio_seconds=1.0)
    session.update(detection=None)
    for seed in range(3):
        session.append(400, seed)
        session.send("input_audio_buffer.commit")
    session.send("response.create")
    expected = np.concatenate([audio(400, 1), audio(400, 2)]).astype(np.float32) / 32768
    assert np.array_equal(session.answer.question.samples, expected)


def test_without_a_question_there_is_no_response(manual):
    assert error(manual.send("response.create", event_id="x"))["code"] == "no_question"
    written(manual, "  ")
    assert error(manual.send("response.create"))["code"] == "no_question"
    written(manual)
    manual.send("response.create")
    answered(manual)
    assert error(manual.send("response.create"))["code"] == "no_question"


def test_one_response_at_a_time(manual):
    written(manual)
    manual.send("response.create")
    written(manual, "again")
    found = error(manual.send("response.create"))
    assert found["code"] == "conversation_already_has_active_response"
    manual.send("response.cancel")
    assert manual.send("response.cancel") == [] and len(manual.found(Cancel)) == 1
    # While it is being cancelled, one response may be asked for, which begins when it has ended.
    assert manual.send("response.create", response={"metadata": {"n": "2"}}) == []
    assert error(manual.send("response.create"))["code"] == "conversation_already_has_active_response"
    events = manual.end(CANCELLED)
    assert types(events) == ["response.done", "response.created"]
    assert events[0]["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert events[1]["response"]["metadata"] == {"n": "2"}
    assert manual.answer.question == WrittenQuestion("again")


def test_a_cancelled_response_keeps_what_was_sent(manual):
    written(manual)
    manual.send("response.create")
    manual.chunk("fo", 100)
    assert manual.send("response.cancel", response_id=manual.answer.response_id) == []
    assert manual.chunk("ur", 100) == []
    done = manual.end(CANCELLED)[-1]["response"]
    assert done["output"][0]["content"][0]["transcript"] == "fo" and manual.found(Forget) == []


@pytest.mark.parametrize(
    ("end", "status", "reason"),
    [
        (END, "completed", None),
        (STEP_LIMIT, "incomplete", "max_output_tokens"),
        (TIME_LIMIT, "incomplete", "max_output_tokens"),
        (CANCELLED, "cancelled", None),
    ],
)
def test_the_end_of_an_answer_is_that_of_its_response(manual, end, status, reason):
    written(manual)
    manual.send("response.create", response={"max_output_tokens": 20})
    assert manual.answer.max_steps == 20
    manual.chunk("four", 100)
    done = manual.end(end)[-1]["response"]
    assert done["status"] == status and (done["status_details"] or {}).get("reason") == reason
    assert done["max_output_tokens"] == 20
    assert (response_file.END, response_file.CANCELLED) == (ENDS[0], ENDS[3]) == (END, CANCELLED)


def test_an_answer_without_a_chunk_has_an_empty_item(manual):
    written(manual)
    manual.send("response.create")
    assert types(manual.end()) == BEGIN_ANSWER + END_ANSWER


def test_answers_in_text_only(manual):
    manual.update(output_modalities=["text"])
    written(manual)
    [created] = manual.send("response.create")
    assert created["response"]["output_modalities"] == ["text"] and not manual.answer.speak
    assert types(manual.chunk("four")) == [*BEGIN_ANSWER, "response.output_text.delta"]
    events = manual.end()
    assert types(events) == ["response.output_text.done", *END_ANSWER[2:]]
    assert events[-1]["response"]["output"][0]["content"] == [{"type": "output_text", "text": "four"}]
    written(manual)
    manual.send("response.create", response={"output_modalities": ["audio"]})
    assert manual.answer.speak


def test_a_response_has_its_own_settings(manual):
    written(manual)
    output = {"format": {"type": "audio/pcma"}, "voice": "cedar"}
    settings = {"instructions": "x", "metadata": {"a": "b"}, "audio": {"output": output}, "tools": []}
    [created] = manual.send("response.create", response=settings)
    assert created["response"]["audio"]["output"] == output and created["response"]["metadata"] == {"a": "b"}
    [_, _, _, delta] = manual.chunk("", 1000)
    assert abs(len(base64.b64decode(delta["delta"])) - 8000) < 200
    manual.end()
    assert manual.update()[0]["session"]["audio"]["output"]["format"]["type"] == "audio/pcm"
    written(manual)
    wrong = {"audio": {"output": {"format": {"type": "audio/pcma", "rate": 24000}}}}
    assert error(manual.send("response.create", response=wrong))["param"] == "response.audio.output.format.rate"
    assert types(manual.send("response.create")) == ["response.created"]


@pytest.mark.parametrize(
    ("code", "kind"), [("server_busy", "server_error"), ("invalid_value", "invalid_request_error")]
)
def test_a_failed_answer_can_be_asked_for_again(manual, code, kind):
    written(manual)
    manual.send("response.create")
    events = manual.take(manual.session.failed(manual.answer.response_id, "Too busy.", code))
    assert types(events) == ["response.done"]
    assert events[0]["response"]["status_details"] == {
        "type": "failed", "error": {"type": kind, "code": code, "message": "Too busy."}
    }  # fmt: skip
    manual.send("response.create")
    assert manual.answer.question == WrittenQuestion("hello")
    manual.chunk("fo", 10)
    assert types(manual.take(manual.session.failed(manual.answer.response_id, "Broken.")))[-1] == "response.done"
    written(manual, "bye")
    manual.send("response.create")
    assert manual.answer.question == WrittenQuestion("bye")
    answered(manual)
    assert error(manual.send("response.create"))["code"] == "no_question"


def test_responses_outside_of_the_conversation(manual):
    written(manual)
    manual.send("response.create")
    inside = manual.answer
    for number in range(MAX_ALONE):
        settings = {"conversation": "none", "input": [user_text(f"n{number}")], "metadata": {"n": str(number)}}
        [created] = manual.send("response.create", response=settings)
        assert created["response"]["conversation_id"] is None
        assert not manual.answer.remembered and manual.answer.question == WrittenQuestion(f"n{number}")
    assert error(manual.send("response.create", response=settings))["code"] == "too_many_responses"
    assert "conversation.item.added" not in types(manual.chunk("four", 100))
    assert "conversation.item.done" not in types(manual.end())
    manual.send("response.cancel", response_id=manual.found(StartAnswer)[1].response_id)
    assert manual.found(Cancel) == [Cancel(manual.found(StartAnswer)[1].response_id)]
    assert types(manual.chunk("x", 10, answer=inside)) == BEGIN_ANSWER + DELTAS
    manual.send("response.cancel")
    assert manual.found(Cancel)[1:] == [Cancel(inside.response_id)]


def test_the_input_of_a_response_stands_alone_and_its_answer_joins_the_conversation(manual):
    item = written(manual, "one")
    given = [user_text("old"), assistant_text("answer"), {"type": "item_reference", "id": item}, user_text("two")]
    manual.send("response.create", response={"input": given})
    assert manual.answer.question == WrittenQuestion("one two") and not manual.answer.remembered
    answer_item = answered(manual)
    manual.send("conversation.item.truncate", item_id=answer_item, content_index=0, audio_end_ms=100)
    manual.send("conversation.item.delete", item_id=answer_item)
    assert manual.found(Crop) == [] and manual.found(Forget) == []
    assert error(manual.send("response.create", response={"input": []}))["code"] == "no_question"
    bad = [{"type": "item_reference", "id": "none"}]
    assert error(manual.send("response.create", response={"input": bad}))["code"] == "invalid_item_reference"
    # The question in the conversation still waits.
    manual.send("response.create")
    assert manual.answer.question == WrittenQuestion("one")


# Items


def test_items_are_inserted_where_the_client_says(manual):
    first = written(manual, "a", id="first")
    assert first == "first"
    for item, after, previous in [
        ({**user_text("b"), "id": "b"}, None, "first"),
        ({**user_text("c"), "id": "c"}, "first", "first"),
        ({**user_text("d"), "id": "d"}, "root", None),
    ]:
        added, done = manual.send("conversation.item.create", item=item, previous_item_id=after)
        assert added["previous_item_id"] == done["previous_item_id"] == previous
    assert manual.order.items == ["d", "first", "c", "b"]
    found = error(manual.send("conversation.item.create", item=user_text("e"), previous_item_id="zzz"))
    assert found["code"] == "item_create_invalid_previous_item_id"
    found = error(manual.send("conversation.item.create", item=user_text("e", id="b")))
    assert found["code"] == "item_create_duplicate_item_id"
    manual.send("response.create")
    assert manual.answer.question == WrittenQuestion("d a c b")


def test_a_question_may_be_sent_as_an_item(manual):
    samples = audio(700)
    content = [{"type": "input_audio", "audio": base64_of(samples), "transcript": "hello"}]
    added, _ = manual.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
    assert added["item"]["content"] == [{"type": "input_audio", "transcript": "hello"}]
    manual.send("response.create")
    assert np.array_equal(manual.answer.question.samples, samples.astype(np.float32) / 32768)


@pytest.mark.parametrize(
    ("item", "code"),
    [
        ({"type": "message", "content": [{"type": "input_text", "text": "x"}]}, "missing_required_parameter"),
        ({"type": "message", "role": "user"}, "missing_required_parameter"),
        ({"type": "message", "role": "user", "content": []}, "missing_required_parameter"),
        (user_text("x", id="root"), "invalid_value"),
        (user_text("x", id=""), "invalid_value"),
        (user_text("x" * 70_000), "string_above_max_length"),
        ({"type": "message", "role": "user", "content": [{"type": "output_text", "text": "x"}]}, "invalid_value"),
        ({"type": "message", "role": "user", "content": [{"type": "input_text"}]}, "missing_required_parameter"),
        ({"type": "message", "role": "user", "content": [{"type": "input_audio"}]}, "missing_required_parameter"),
        ({"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "AA=="}]}, "invalid_value"),
        ({"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "A"}]}, "invalid_value"),
        (
            {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "data:"}]},
            "unsupported_content_type",
        ),
        (
            {"type": "message", "role": "assistant", "content": [{"type": "output_audio", "audio": "AAAA"}]},
            "invalid_value",
        ),
        ({"type": "item_reference", "id": "x"}, "invalid_value"),
        ({"type": "mcp_call"}, "invalid_value"),
        ({"type": "function_call_output", "call_id": "x"}, "missing_required_parameter"),
    ],
)
def test_wrong_items_are_refused(manual, item, code):
    assert error(manual.send("conversation.item.create", item=item))["code"] == code
    assert manual.order.items == []


def test_an_item_is_at_most_as_long_as_a_question():
    session = Checked(max_audio_seconds=1.0)
    content = [{"type": "input_audio", "audio": base64_of(audio(600))}] * 2
    item = {"type": "message", "role": "user", "content": content}
    assert error(session.send("conversation.item.create", item=item))["code"] == "audio_too_long"


@pytest.mark.parametrize("form", ["audio/pcm", "audio/pcmu"])
def test_audio_that_is_too_long_for_an_item_is_not_decoded(form, monkeypatch):
    session = Checked(max_audio_seconds=1.0)
    session.update(audio={"input": {"format": {"type": form}}})
    monkeypatch.setattr(InputAudio, "push", lambda *_: pytest.fail("decoded"))
    content = [{"type": "input_audio", "audio": base64.b64encode(bytes(48_100)).decode()}]
    item = {"type": "message", "role": "user", "content": content}
    assert error(session.send("conversation.item.create", item=item))["code"] == "audio_too_long"


def test_the_texts_of_an_item_together_are_at_most_as_long_as_one(manual):
    content = [{"type": "input_text", "text": "x" * 40_000}] * 2
    item = {"type": "message", "role": "user", "content": content}
    assert error(manual.send("conversation.item.create", item=item))["code"] == "string_above_max_length"


def test_items_for_other_systems_are_kept_without_effect(manual):
    call = {"type": "function_call", "name": "look", "arguments": "{}", "call_id": "c"}
    output = {"type": "function_call_output", "call_id": "c", "output": "rain"}
    system = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be brief."}]}
    written(manual)
    for item in (call, output, system):
        added, done = manual.send("conversation.item.create", item=item)
        assert {name: added["item"][name] for name in item} == item and done["item"]["status"] == "completed"
    manual.send("response.create")
    assert manual.answer.question == WrittenQuestion("hello")


def test_a_history_that_the_client_brings_along_is_remembered(manual):
    written(manual, "what is two plus two")
    added, _ = manual.send("conversation.item.create", item=assistant_text("four"))
    [remembered] = manual.found(Remember)
    assert (remembered.question, remembered.answer) == ("what is two plus two", "four")
    written(manual, "and three")
    manual.send("response.create")
    assert manual.answer.question == WrittenQuestion("and three")
    answered(manual)
    manual.send("conversation.item.delete", item_id=added["item"]["id"])
    assert manual.found(Forget) == [Forget(remembered.key)]


def test_history_that_the_system_cannot_take_is_kept_without_effect(manual):
    manual.send("conversation.item.create", item=assistant_text("Welcome."))
    written(manual)
    manual.send("conversation.item.create", item=assistant_text("before"), previous_item_id="root")
    assert manual.found(Remember) == []
    manual.send("response.create")
    assert manual.answer.question == WrittenQuestion("hello")
    answered(manual)
    manual.send("conversation.item.create", item=user_text("old"), previous_item_id="root")
    assert error(manual.send("response.create"))["code"] == "no_question"


def test_history_waits_for_the_end_of_a_running_answer(manual):
    written(manual)
    manual.send("response.create")
    manual.chunk("hi", 10)
    written(manual, "two plus two")
    manual.send("conversation.item.create", item=assistant_text("four"))
    assert manual.found(Remember) == []
    manual.end()
    assert len(manual.found(Remember)) == 1


def test_an_item_can_be_retrieved_with_its_audio(manual):
    samples = manual.append(300)
    item = manual.send("input_audio_buffer.commit")[0]["item_id"]
    [retrieved] = manual.send("conversation.item.retrieve", item_id=item)
    [content] = retrieved["item"]["content"]
    assert retrieved["type"] == "conversation.item.retrieved" and content["audio"] == base64_of(samples)
    manual.update(audio={"input": {"format": {"type": "audio/pcmu"}}})
    [content] = manual.send("conversation.item.retrieve", item_id=item)[0]["item"]["content"]
    assert len(base64.b64decode(content["audio"])) == 300 * 8
    assert error(manual.send("conversation.item.retrieve", item_id="x"))["code"] == "item_retrieve_invalid_item_id"


def test_only_the_last_speech_is_kept():
    session = Checked()
    session.update(detection=None)
    items = []
    for _ in range(6):
        session.append(29_000)
        items.append(session.send("input_audio_buffer.commit")[0]["item_id"])
    retrieved = [session.send("conversation.item.retrieve", item_id=item)[0]["item"] for item in items]
    assert ["audio" in item["content"][0] for item in retrieved] == [False, False, True, True, True, True]


def test_a_question_of_the_longest_length_is_kept():
    session = Checked(max_audio_seconds=150.0)
    session.update(detection=None)
    for _ in range(5):
        session.append(28_000)
    session.send("input_audio_buffer.commit")
    session.send("response.create")
    assert len(session.answer.question.samples) == 140 * RATE


def test_truncation_crops_what_the_system_remembers(manual):
    written(manual)
    manual.send("response.create")
    item = answered(manual, ms=1000)
    place = {"item_id": item, "content_index": 0}
    for ms in (1001, 5000):
        found = error(manual.send("conversation.item.truncate", **place, audio_end_ms=ms))
        assert (found["code"], found["param"]) == ("invalid_value", "audio_end_ms")
    [truncated] = manual.send("conversation.item.truncate", **place, audio_end_ms=640)
    assert {name: truncated[name] for name in ("item_id", "content_index", "audio_end_ms")} == {
        **place, "audio_end_ms": 640
    }  # fmt: skip
    assert manual.found(Crop) == [Crop(manual.answer.response_id, 0.64)]
    [retrieved] = manual.send("conversation.item.retrieve", item_id=item)
    assert retrieved["item"]["content"] == [{"type": "output_audio"}]
    assert error(manual.send("conversation.item.truncate", **place, audio_end_ms=700))
    assert types(manual.send("conversation.item.truncate", **place, audio_end_ms=0)) == ["conversation.item.truncated"]


def test_truncation_of_what_has_no_speech_is_refused(manual):
    question = written(manual)
    added, _ = manual.send("conversation.item.create", item=assistant_text("four"))
    content = [{"type": "output_audio", "transcript": "four"}]
    spoken, _ = manual.send(
        "conversation.item.create", item={"type": "message", "role": "assistant", "content": content}
    )
    for item in (question, added["item"]["id"], spoken["item"]["id"]):
        assert error(manual.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=0))
    found = error(manual.send("conversation.item.truncate", item_id="x", content_index=0, audio_end_ms=0))
    assert found["code"] == "item_truncate_invalid_item_id"
    written(manual)
    manual.send("response.create")
    item = answered(manual)
    assert error(manual.send("conversation.item.truncate", item_id=item, content_index=1, audio_end_ms=0))


def test_an_answer_may_be_truncated_while_it_is_being_cancelled(manual):
    """LiveKit and pipecat truncate as soon as they hear of the interruption."""
    written(manual)
    manual.send("response.create")
    item = manual.chunk("four", 1000)[0]["item"]["id"]
    manual.send("response.cancel")
    events = manual.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=300)
    assert types(events) == ["conversation.item.truncated"] and manual.found(Crop) == []
    manual.end(CANCELLED)
    assert manual.found(Crop) == [Crop(manual.answer.response_id, 0.3)]
    assert len(manual.found(Cancel)) == 1


def test_truncating_a_running_answer_cancels_it(manual):
    written(manual)
    manual.send("response.create")
    item = manual.chunk("four", 1000)[0]["item"]["id"]
    manual.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=300)
    assert manual.found(Cancel) == [Cancel(manual.answer.response_id)]
    assert manual.end()[-1]["response"]["status"] == "cancelled"


def test_edits_that_wait_for_an_answer_do_not_grow(manual):
    """A client that repeats itself while an answer runs is remembered by its last words only."""
    written(manual)
    manual.send("response.create")
    item, first = answered(manual), manual.answer.response_id
    written(manual)
    manual.send("response.create")
    for ms in (900, 900, *range(320, 300, -1)):
        manual.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=ms)
        asked = written(manual, "two plus two")
        manual.send("conversation.item.create", item=assistant_text("four"))
        for each in manual.order.items[-2:]:
            manual.send("conversation.item.delete", item_id=each)
        assert asked not in manual.order.items and len(manual.session._edits) == 1
    manual.end()
    assert (manual.found(Crop), manual.found(Remember), manual.found(Forget)) == ([Crop(first, 0.301)], [], [])
    for _ in range(3):
        manual.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=301)
    assert len(manual.found(Crop)) == 1


@pytest.mark.parametrize("which", ["question", "answer"])
def test_deleting_either_side_of_a_turn_forgets_it_once(manual, which):
    question = written(manual)
    manual.send("response.create")
    answer = answered(manual)
    first, second = (question, answer) if which == "question" else (answer, question)
    assert types(manual.send("conversation.item.delete", item_id=first)) == ["conversation.item.deleted"]
    assert manual.found(Forget) == [Forget(manual.answer.response_id)]
    manual.send("conversation.item.delete", item_id=second)
    assert len(manual.found(Forget)) == 1 and manual.order.items == []
    assert error(manual.send("conversation.item.delete", item_id=first))["code"] == "item_delete_invalid_item_id"


def test_deleting_a_question_that_waits_drops_it(manual):
    question = written(manual)
    manual.send("conversation.item.delete", item_id=question)
    assert manual.found(Forget) == [] and error(manual.send("response.create"))["code"] == "no_question"


def test_deletion_during_the_answer(manual):
    question = written(manual)
    manual.send("response.create")
    answer = manual.chunk("four", 1000)[0]["item"]["id"]
    assert error(manual.send("conversation.item.delete", item_id=answer))["code"] == "item_in_progress"
    manual.send("conversation.item.delete", item_id=question)
    assert manual.found(Forget) == []
    manual.end()
    assert manual.found(Forget) == [Forget(manual.answer.response_id)]
    manual.send("conversation.item.truncate", item_id=answer, content_index=0, audio_end_ms=300)
    assert manual.found(Crop) == []


def test_a_turn_is_forgotten_once_even_if_its_answer_never_began(manual):
    question = written(manual)
    manual.send("response.create")
    manual.send("conversation.item.delete", item_id=question)
    manual.send("response.cancel")
    manual.end(CANCELLED)
    assert manual.found(Forget) == [Forget(manual.answer.response_id)]


# Transcripts


def transcribing(detection: object = ...) -> Checked:
    session = Checked()
    session.update(detection=detection, audio={"input": {"transcription": {"model": "whisper-1"}}})
    return session


def test_nothing_is_transcribed_unless_the_session_asks(session):
    session.turn()
    answered(session)
    assert session.wait(1) == [] and session.found(Transcribe) == []


def test_a_detected_turn_is_transcribed_with_the_features_of_its_answer():
    session = transcribing()
    session.turn()
    [asked] = session.found(Transcribe)
    assert session.actions.index(asked) > session.actions.index(session.answer)
    assert asked.response_id == session.answer.response_id and len(asked.samples) == 1500 * 24
    events = session.take(session.session.transcribed(asked.item_id, "two plus two"))
    assert [event["type"].rsplit(".", 1)[1] for event in events] == ["delta", "completed"]
    assert events[0]["delta"] == events[1]["transcript"] == "two plus two"
    assert events[1]["usage"] == {"type": "duration", "seconds": 1.5}
    [retrieved] = session.send("conversation.item.retrieve", item_id=asked.item_id)
    assert retrieved["item"]["content"][0]["transcript"] == "two plus two"


def test_a_committed_turn_is_transcribed_with_its_response_or_soon():
    session = transcribing(None)
    session.append(300)
    session.send("input_audio_buffer.commit")
    assert session.found(Transcribe) == []
    session.send("response.create")
    assert session.found(Transcribe)[0].response_id == session.answer.response_id
    session.append(300)
    session.send("input_audio_buffer.commit")
    session.wait(1)
    assert session.found(Transcribe)[1].response_id is None


def test_features_of_joined_questions_are_those_of_neither():
    session = transcribing(None)
    for _ in range(2):
        session.append(300)
        session.send("input_audio_buffer.commit")
    session.send("response.create")
    assert [asked.response_id for asked in session.found(Transcribe)] == [None, None]


def test_a_transcript_that_fails_is_reported_for_its_item():
    session = transcribing()
    session.turn()
    [asked] = session.found(Transcribe)
    [failed] = session.take(session.session.not_transcribed(asked.item_id, "Too busy."))
    assert failed["type"].endswith("transcription.failed") and failed["error"]["message"] == "Too busy."
    assert session.take(session.session.transcribed(asked.item_id, "late")) == []


def test_the_transcript_of_a_deleted_item_is_dropped():
    session = transcribing()
    session.turn()
    [asked] = session.found(Transcribe)
    session.send("conversation.item.delete", item_id=asked.item_id)
    assert session.take(session.session.transcribed(asked.item_id, "two")) == []
    assert session.take(session.session.not_transcribed("item_0", "x")) == []


# Silence


def test_the_users_silence_is_answered_if_the_client_asks():
    session = Checked()
    session.update(detection={"type": "server_vad", "idle_timeout_ms": 6000})
    assert session.found(Detect)[-1].detection.idle_ms == 6000
    session.turn()
    answered(session, ms=2000)
    for _ in range(7):
        session.time += 1
        session.append(1000)
    assert session.heard(Idle(9500.0)) == []
    session.time += 1
    events = session.heard(Idle(9500.0))
    assert types(events) == ["input_audio_buffer.timeout_triggered", *VAD_TURN[2:]]
    assert (events[0]["audio_start_ms"], events[0]["audio_end_ms"]) == (3500, 9500)
    assert len(session.answer.question.samples) == 6000 * 24
    assert session.wait(10) == []


def test_silence_that_was_not_sent_is_not_answered():
    session = Checked()
    session.update(detection={"type": "server_vad", "idle_timeout_ms": 1000})
    session.turn(to=2000.0)
    answered(session, ms=0)
    assert session.wait(20) == []


# Limits


def test_a_session_is_closed_when_it_is_idle_or_too_long():
    session = Checked(idle_seconds=60, session_minutes=2)
    assert session.wait(59) == []
    session.update()
    assert session.wait(59) == []
    session.update()
    events = session.wait(2)
    assert error(events)["code"] == "session_expired" and isinstance(session.actions[-1], Close)
    session = Checked(idle_seconds=60, session_minutes=2)
    events = session.wait(60)
    assert error(events)["code"] == "session_idle" and "60 seconds" in session.actions[-1].reason
    assert session.update() == [] and session.wait(100) == [] and session.session.closed() == []


def test_responses_end_before_the_session_does(manual):
    written(manual)
    manual.send("response.create")
    manual.chunk("four", 1000)
    manual.send("response.create", response={"conversation": "none", "input": [user_text("x")]})
    written(manual, "next")
    events = manual.wait(3600)
    assert types(events) == [*END_ANSWER, "response.done", "error"]
    assert len(manual.found(Cancel)) == 2 and isinstance(manual.actions[-1], Close)
    assert manual.end(CANCELLED) == [] and manual.chunk("x", 10) == []


def test_a_client_that_leaves_ends_its_answers(manual):
    written(manual)
    manual.send("response.create")
    assert manual.session.closed() == [Cancel(manual.answer.response_id)]
    assert manual.session.closed() == [] and manual.update() == [] and manual.end() == []


def test_a_conversation_has_a_greatest_number_of_items():
    session = Checked(max_items=3)
    for _ in range(3):
        item = written(session)
    assert error(session.send("conversation.item.create", item=user_text("x")))["code"] == "conversation_full"
    assert error(session.send("response.create"))["code"] == "conversation_full"
    events = session.turn()
    assert types(events) == [*VAD_TURN[:2], "error"]
    session.append(500)
    assert error(session.send("input_audio_buffer.commit"))["code"] == "conversation_full"
    session.send("conversation.item.delete", item_id=item)
    assert types(session.send("response.create")) == ["response.created"]


def test_reports_on_unknown_answers_are_ignored(session):
    empty = np.zeros(0, np.float32)
    for reported in (session.session.chunk("resp_0", "x", empty), session.session.failed("resp_0", "x")):
        assert reported == []


def test_the_state_machine_imports_no_torch():
    """A session is a few objects; the system that it talks to is none of its business."""
    import subprocess

    code = "import sys, omnikit.serve.realtime.session; print([m for m in ('torch', 'fastapi') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []
