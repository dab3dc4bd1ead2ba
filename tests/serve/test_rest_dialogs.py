"""Test what becomes of the messages of chat completions, and the small forms of texts and errors, without a system."""

from __future__ import annotations

import json
import re

import pytest

from omnikit.errors import one_line
from omnikit.generate import BadQuestion
from omnikit.generate.types import TokenCounts
from omnikit.serve.refusals import Refusal
from omnikit.serve.rest import spoken_answers
from omnikit.serve.rest.chat import ChatRequest
from omnikit.serve.rest.dialogs import Message, read_dialog
from omnikit.serve.rest.errors import blames, late, validated
from omnikit.serve.rest.spoken_answers import SpokenAnswers
from omnikit.serve.rest.subtitles import srt, verbose, vtt
from omnikit.serve.rest.usage import (
    InputTokenDetails,
    PromptTokensDetails,
    TokenUsage,
    completion_usage,
    transcription_usage,
)

WAV = {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def dialog(*messages: tuple, known: dict | None = None) -> tuple[list[tuple], tuple]:
    """Return the turns (question, answer) and the last question of messages (role, content, audio id)."""
    given = [Message(role=role, content=said, audio=audio[0] if audio else None) for role, said, *audio in messages]
    turns, asked = read_dialog(given, (known or {}).get)
    return [(what(turn.asked), turn.answer) for turn in turns], what(asked)


def what(asked) -> str:
    return "recording" if asked.audio is not None else asked.text


def test_one_question():
    assert dialog(("user", "hello")) == ([], "hello")
    assert dialog(("system", "be brief"), ("developer", [text("be kind")]), ("user", [text("hello")])) == ([], "hello")
    assert dialog(("user", [text("what is said here"), WAV])) == ([], "recording")


def test_answered_turns():
    spoken = ("user", [WAV]), ("assistant", [text("four")])
    found = dialog(("user", "one"), ("assistant", "two"), *spoken, ("user", "five"))
    assert found == ([("one", "two"), ("recording", "four")], "five")


def test_messages_of_one_role_are_one():
    found = dialog(
        ("assistant", "a greeting"), ("user", "one"), ("user", "two"), ("assistant", "three"), ("system", "x"),
        ("assistant", "four"), ("user", [text("five"), text("six")]),
    )  # fmt: skip
    assert found == ([("one two", "three four")], "five six")


def test_an_answer_without_a_text_is_no_turn():
    assert dialog(("user", "one"), ("assistant", None), ("user", "two")) == ([], "one two")


def test_spoken_answers_are_known_by_their_ids():
    asked = ("user", "one"), ("assistant", None, {"id": "audio_1"}), ("user", "two")
    assert dialog(*asked, known={"audio_1": "spoken"}) == ([("one", "spoken")], "two")
    with pytest.raises(Refusal, match=r"^messages.1.audio.id: no such audio") as caught:
        dialog(*asked)
    assert caught.value.param == "messages.1.audio.id"


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([("system", "be brief")], "the last one must be a user's"),
        ([("user", "one"), ("assistant", "two")], "the last one must be a user's"),
        ([("user", [])], "the last one must be a user's"),
        ([("user", [WAV, WAV])], "messages.0.content.1: a question has one recording"),
        ([("user", [WAV]), ("user", [WAV])], "messages.1.content.0: a question has one recording"),
        ([("user", [{"type": "text"}])], "messages.0.content.0: a user's part is a text or an input_audio"),
        ([("user", [{"type": "refusal", "text": "no"}])], "messages.0.content.0: a user's part is"),
        ([("user", [{"type": "input_audio"}])], "messages.0.content.0: a user's part is"),
    ],
)
def test_dialogs_without_a_question(messages, problem):
    with pytest.raises(Refusal, match=rf"{re.escape(problem)}") as caught:
        dialog(*messages)
    assert caught.value.status == 400


def chat(**fields) -> ChatRequest:
    messages = [{"role": "user", "content": "hello"}]
    return validated(ChatRequest, {"model": "mini", "messages": messages, **fields})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"logprobs": True}, "logprobs"),
        ({"stop": "a"}, "stop"),
        ({"stop": ["a"]}, "stop"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "user", "content": "hello"}] * 9}, "messages"),
        ({"modalities": ["text", "audio"]}, "audio"),
        ({"modalities": ["audio"], "audio": {"format": "aac", "voice": "alloy"}}, "audio.format"),
        ({"modalities": ["audio"], "audio": {"format": "wav"}, "stream": True}, "audio.format"),
    ],
)
def test_what_would_change_an_answer_is_refused(fields, param):
    with pytest.raises(Refusal) as caught:
        chat(**fields).check(8)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith(f"{param}: ")


def test_what_changes_nothing_is_accepted():
    chat(n=1, tools=[], logprobs=False, stop=None, response_format={"type": "text"}, user="x").check(8)
    chat(modalities=["text"], audio={"format": "aac"}).check(8)
    chat(modalities=["text", "audio"], audio={"format": "pcm16", "voice": {"id": "x"}}, stream=True).check(8)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        (
            {"messages": [{"role": "user", "content": [WAV | {"input_audio": {"data": "", "format": "x"}}]}]},
            "messages.0.content.0.input_audio.format",
        ),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"modalities": ["video"]}, "modalities.0"),
    ],
)
def test_errors_name_the_place_that_is_wrong(fields, param):
    with pytest.raises(Refusal) as caught:
        chat(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith(f"{param}: ")


def test_messages_of_errors_are_short_lines_that_can_be_sent():
    with pytest.raises(Refusal) as caught, blames("input"):
        raise ValueError("text 'a\nb\ud800': " + "x" * 5000)
    assert caught.value.param == "input"
    assert caught.value.message == one_line(caught.value.message, None)
    assert len(caught.value.message) <= 1000
    json.loads(caught.value.body)


def test_errors_of_a_part_that_was_sent(caplog):
    assert late(BadQuestion("too long")).error.message == "too long"
    assert not caplog.records
    told = late(RuntimeError("a secret")).error
    assert told.type == "server_error"
    assert "secret" not in told.message
    assert "a secret" in caplog.text
    with pytest.raises(ValueError) as caught:
        TokenUsage(input_tokens=1, output_tokens=2)
    assert late(caught.value).error.type == "server_error"  # a wrong body is no mistake of the client


def test_spoken_answers_are_forgotten(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(spoken_answers, "MOST", 2)
    answers = SpokenAnswers(lambda: now[0])
    first, second, third = (answers.new_id() for _ in range(3))
    assert len({first, second, third}) == 3
    expires = answers.store(first, "one")
    now[0] += 10
    assert (answers.text(first), answers.text("audio_x")) == ("one", None)
    now[0] = expires
    assert answers.text(first) is None
    answers.store(second, "two")
    answers.store(third, "three")
    answers.store(answers.new_id(), "four")
    assert (answers.text(second), answers.text(third)) == (None, "three")


def test_subtitles():
    assert srt("two plus two", 3725.0456) == "1\n00:00:00,000 --> 01:02:05,046\ntwo plus two\n\n"
    assert vtt("five", 0.9996) == "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nfive\n\n"
    found = verbose("no " * 99, 1.5, language=None, temperature=0.5)
    assert (found.duration, found.segments[0].end, found.segments[0].text) == (1.5, 1.5, "no " * 99)
    assert found.segments[0].compression_ratio > 2.4  # Whisper's threshold for loops
    assert verbose("", 1.0, language="en", temperature=0).language == "en"


def test_usage_adds_up():
    counts = TokenCounts(prompt=25, history=40, cached=30, features=44, text=5, frames=12)
    usage = completion_usage(counts)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (65, 17, 82)
    assert usage.prompt_tokens_details == PromptTokensDetails(cached_tokens=30, audio_tokens=22, text_tokens=43)
    assert usage.completion_tokens_details.audio_tokens == 12
    spoken = transcription_usage(TokenCounts(prompt=25, history=0, cached=0, features=44, text=5, frames=0))
    assert spoken.input_token_details == InputTokenDetails(audio_tokens=22, text_tokens=3)
    assert spoken.total_tokens == 30
    written = completion_usage(TokenCounts(prompt=9, history=0, cached=0, features=0, text=2, frames=0))
    assert written.prompt_tokens_details.audio_tokens == 0
