"""Test that JSON with long audio is decoded like any other, but fast enough for an event loop."""

from __future__ import annotations

import base64
import json
import os
from time import thread_time

import pytest

from omnikit.serve import long_json
from omnikit.serve.long_json import LONG, MOST_REST, TooLong, loads
from omnikit.serve.realtime.connection import SLICE, _slices
from tests.serve.checked_session import Checked

AUDIO = base64.b64encode(os.urandom(LONG)).decode()
OTHER = base64.b64encode(bytes(LONG)).decode()


@pytest.mark.parametrize(
    "value",
    [
        {"type": "input_audio_buffer.append", "audio": AUDIO},
        {"audio": {"audio": AUDIO}, "a": ['"audio": "', 'x"audio', {"data": OTHER, "audio": "", 'k"audio': AUDIO}]},
        {"audio": "ä" * LONG, "data": "\\" * LONG, "b": '"' * LONG, "audio\\": AUDIO},
        {"modalities": ["text", "audio"], "audio": [AUDIO, AUDIO], "messages": [{"data": AUDIO}] * 4},
        [{"audio": "short"}] * 5000,
        AUDIO,
        ["audio", AUDIO],
    ],
    ids=str.split("append nested escaped chat many text names"),
)
def test_values_are_those_of_the_standard_library(value):
    for options in ({}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}):
        text = json.dumps(value, **options)
        assert loads(text) == json.loads(text) == value
        escaped = text.replace("/", "\\/")
        assert loads(escaped) == value
        for wrong in (text[:-1], text + '"', text[: len(text) // 2]):
            with pytest.raises(ValueError):
                loads(wrong)


def test_what_is_no_audio_is_bounded():
    text = json.dumps({"audio": AUDIO, "text": "x" * MOST_REST})
    with pytest.raises(TooLong, match="at most 1 MiB of JSON besides the audio"):
        loads(text)
    assert loads(text.replace("x" * 200, "")) == json.loads(text.replace("x" * 200, ""))
    session = Checked()
    [event] = session.take(session.session.receive("[" + "[]," * MOST_REST + "[]]"))
    assert event["error"]["code"] == "event_too_large"


def test_much_audio_takes_a_fraction_of_the_time():
    text = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(15 * 2**20)).decode()})
    times = []
    for decode in (json.loads, lambda text: next(_slices(text))):
        began = thread_time()
        decode(text)
        times.append(thread_time() - began)
    assert times[1] < 0.7 * times[0], times  # a third, on an idle machine
    slices = list(_slices(text))
    assert "".join(each["audio"] for each in slices) == json.loads(text)["audio"]
    assert all(len(each["audio"]) <= SLICE for each in slices)


def test_searches_are_bounded(monkeypatch):
    """A text in which the names occur millions of times is not searched for all of them."""
    counted = []
    begin = long_json._BEGIN

    class Counting:
        def match(self, *args):
            counted.append(args)
            return begin.match(*args)

    monkeypatch.setattr(long_json, "_BEGIN", Counting())
    with pytest.raises(TooLong):
        loads('["audio",' * 2**17 + '"data","data"')
    assert len(counted) <= 256
