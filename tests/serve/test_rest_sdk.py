"""Test the REST calls by the openai Python SDK, unmodified, and by the request of the published Gradio page.

The server runs under uvicorn in a thread. Its answers are compared with those of the API.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
import soundfile
import uvicorn

from omnikit.api import Omni, Reply
from omnikit.audio.reader import read
from omnikit.generate import Decoding
from omnikit.serve.app import create_app
from omnikit.serve.rest.written_audio import encoded
from omnikit.serve.serving import Serving
from omnikit.serve.settings import ServerSettings
from tests.serve.conftest import NAME, QUESTION

TEXT = "five"
"""Text that the tests let the server speak; short, since it is spoken several times."""
WRITTEN = "what is two plus two"
ENDLESS = "endless"
"""Name of a system whose answers take long."""


@pytest.fixture(scope="module")
def serving(omni) -> Serving:
    endless = Omni(omni.model, decoding=Decoding(max_steps=1000, min_steps=990))
    return Serving(ServerSettings(), {NAME: omni, ENDLESS: endless})


@pytest.fixture(scope="module")
def url(serving) -> Iterator[str]:
    """Return the address of a running server."""
    server = uvicorn.Server(uvicorn.Config(create_app(serving), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    serving.systems[ENDLESS].close()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def sdk(url) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def asked(omni) -> Reply:
    """Return the answer to the recorded question."""
    return omni.ask(QUESTION)


@pytest.fixture(scope="module")
def said(omni) -> Reply:
    """Return the speech of `TEXT`."""
    return omni.speak(TEXT)


def until(true, seconds: float = 30.0) -> None:
    """Wait until a function returns a true value."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true in time"
        time.sleep(0.01)


def pcm(reply: Reply) -> np.ndarray:
    """Return the speech of a reply as 16 bit samples at 24 kHz."""
    return np.frombuffer(encoded(reply.wav.numpy(), reply.sample_rate, "pcm"), "<i2")


def same(data: bytes, reply: Reply) -> bool:
    """Return whether 16 bit samples are the speech of a reply but for rounding."""
    found, wanted = np.frombuffer(data, "<i2").astype(int), pcm(reply).astype(int)
    return len(found) == len(wanted) > 0 and np.abs(found - wanted).max() <= 2


def spoken_message(name: str = QUESTION.name) -> dict:
    data = base64.b64encode(QUESTION.with_name(name).read_bytes()).decode()
    return {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]}


def answers(serving: Serving, kind: str, end: str) -> float:
    """Return the number of answers of a kind that ended for a reason, by the server's own count."""
    return serving.metrics.registry.get_sample_value("omnikit_answers_total", {"kind": kind, "end": end}) or 0.0


def test_models(sdk):
    assert [model.id for model in sdk.models.list()] == [NAME, ENDLESS]
    assert sdk.models.retrieve(NAME).object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.models.retrieve("../mini")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("name", ["pcm", "wav"])
def test_speech(sdk, said, name):
    answer = sdk.audio.speech.create(model=NAME, voice="alloy", input=TEXT, response_format=name)
    data = answer.content
    assert same(data if name == "pcm" else data[44:], said)
    assert answer.response.headers["content-type"] == f"audio/{name}"


def test_speech_is_mp3_unless_another_format_is_named(sdk, said):
    data = sdk.audio.speech.create(model=NAME, voice="alloy", input=TEXT, speed=2.0, instructions="happy").content
    assert soundfile.info(io.BytesIO(data)).format == "MP3"
    sound = read(data, "speech")
    assert sound.rate == 24000
    assert 0 <= sound.frames - len(pcm(said)) < 0.2 * sound.rate


def test_speech_arrives_while_it_is_generated(sdk):
    options = {"model": ENDLESS, "voice": "alloy", "input": TEXT, "response_format": "pcm"}
    with sdk.audio.speech.with_streaming_response.create(**options) as response:
        assert len(next(response.iter_bytes(4800))) == 4800  # 0.1 s of an answer that takes many seconds


def test_speech_as_events(sdk, said):
    options = {"model": NAME, "voice": "alloy", "input": TEXT, "response_format": "pcm", "stream_format": "sse"}
    with sdk.audio.speech.with_streaming_response.create(**options) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
    assert same(b"".join(base64.b64decode(event["audio"]) for event in events[:-1]), said)
    assert events[-1]["type"] == "speech.audio.done"
    usage = events[-1]["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0


@pytest.fixture(scope="module")
def transcript(omni) -> str:
    return omni.transcribe(QUESTION)


def transcribe(sdk, **options):
    with QUESTION.open("rb") as file:
        return sdk.audio.transcriptions.create(model=NAME, file=file, **options)


def test_transcriptions(sdk, transcript):
    found = transcribe(sdk, language="en", prompt="a sum", temperature=0)
    assert found.text == transcript
    assert found.usage.type == "tokens"
    assert found.usage.input_tokens == found.usage.input_token_details.audio_tokens + 3
    assert transcribe(sdk, response_format="text") == f"{transcript}\n"
    found = transcribe(sdk, response_format="verbose_json", language="en", timestamp_granularities=["segment"])
    assert (found.text, found.segments[0].text, found.language) == (transcript, transcript, "en")
    seconds = soundfile.info(QUESTION).duration
    assert found.duration == found.segments[0].end == pytest.approx(seconds)


def test_transcriptions_as_subtitles(sdk, transcript):
    assert f"\n{transcript}\n" in transcribe(sdk, response_format="srt")
    assert transcribe(sdk, response_format="vtt").startswith("WEBVTT\n\n00:00:00.000 --> 00:00:0")


def test_transcriptions_as_events(sdk, transcript):
    events = list(transcribe(sdk, stream=True))
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == transcript
    assert len(events) > 2
    assert (events[-1].type, events[-1].text) == ("transcript.text.done", transcript)
    assert events[-1].usage.output_tokens > 0


def test_a_written_answer(sdk, omni):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": WRITTEN}]
    found = sdk.chat.completions.create(model=NAME, messages=messages)
    choice = found.choices[0]
    assert (choice.message.content, choice.message.audio, choice.finish_reason) == (omni.chat(WRITTEN), None, "stop")
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.model == NAME


def test_a_written_answer_in_chunks(sdk, omni):
    messages, options = [{"role": "user", "content": WRITTEN}], {"include_usage": True}
    chunks = list(
        sdk.chat.completions.create(
            model=NAME, messages=messages, stream=True, stream_options=options, max_completion_tokens=2
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert omni.chat(WRITTEN).startswith(text)
    assert text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 2
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_spoken_question_is_answered_by_speech(sdk, omni, asked):
    audio = {"voice": "alloy", "format": "wav"}
    messages = [spoken_message()]
    found = sdk.chat.completions.create(model=NAME, modalities=["text", "audio"], audio=audio, messages=messages)
    message = found.choices[0].message
    assert message.content is None
    assert message.audio.transcript == asked.text
    assert same(base64.b64decode(message.audio.data)[44:], asked)
    assert time.time() < message.audio.expires_at
    assert found.usage.prompt_tokens_details.audio_tokens > 0
    assert found.usage.completion_tokens_details.audio_tokens > 0

    messages += [{"role": "assistant", "audio": {"id": message.audio.id}}, {"role": "user", "content": "and five"}]
    again = sdk.chat.completions.create(model=NAME, messages=messages)
    talk = omni.conversation()
    talk.remember(None, omni.transcribe(QUESTION), asked.text)
    assert again.choices[0].message.content == talk.say("and five", speak=False).text
    assert again.usage.prompt_tokens > found.usage.completion_tokens_details.text_tokens + 10


def test_speech_in_chunks(sdk, asked):
    chunks = sdk.chat.completions.create(
        model=NAME, modalities=["text", "audio"], audio={"voice": "alloy", "format": "pcm16"}, stream=True,
        messages=[spoken_message()],
    )  # fmt: skip
    deltas = [chunk.choices[0].delta for chunk in chunks]
    parts = [delta.audio for delta in deltas if delta.audio is not None]
    assert [part.id for part in parts if part.id] == [parts[0].id]
    assert "".join(part.transcript or "" for part in parts) == asked.text
    assert same(b"".join(base64.b64decode(part.data) for part in parts if part.data), asked)
    assert [part.expires_at for part in parts if part.expires_at] == [parts[-1].expires_at]


def test_earlier_turns_count(sdk, omni):
    talk = omni.conversation()
    talk.remember(None, WRITTEN, "four")
    messages = [
        {"role": "user", "content": WRITTEN}, {"role": "assistant", "content": "four"},
        {"role": "user", "content": "and three plus two"},
    ]  # fmt: skip
    found = sdk.chat.completions.create(model=NAME, messages=messages)
    assert found.choices[0].message.content == talk.say("and three plus two", speak=False).text


def speak(sdk, text, **options):
    return sdk.audio.speech.create(model=NAME, voice="alloy", input=text, **options)


def chat(sdk, text):
    return sdk.chat.completions.create(model=NAME, messages=[{"role": "user", "content": text}])


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (lambda sdk: speak(sdk, "x", response_format="aac"), "response_format"),
        (lambda sdk: speak(sdk, "日本"), "input"),
        (lambda sdk: speak(sdk, "x" * 4097), "input"),
        (lambda sdk: sdk.audio.transcriptions.create(model=NAME, file=("a.wav", b"RIFF")), "file"),
        (lambda sdk: transcribe(sdk, include=["logprobs"]), "include"),
        (lambda sdk: transcribe(sdk, timestamp_granularities=["word"]), "timestamp_granularities.0"),
        (lambda sdk: chat(sdk, "日本"), "messages.0"),
    ],
)
def test_bad_input_raises_the_sdks_error(sdk, call, param):
    with pytest.raises(openai.BadRequestError) as caught:
        call(sdk)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_an_unknown_model_raises_the_sdks_error(sdk):
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.audio.speech.create(model="/etc/passwd", voice="alloy", input=TEXT)
    assert caught.value.code == "model_not_found"


def test_a_full_queue_raises_the_sdks_error(sdk, serving, monkeypatch):
    from omnikit.generate import Decoder, QueueFull

    def full(*_, **__):
        raise QueueFull("64 questions are waiting")

    monkeypatch.setattr(Decoder, "submit", full)
    with pytest.raises(openai.InternalServerError) as caught:
        sdk.chat.completions.create(model=NAME, messages=[{"role": "user", "content": WRITTEN}])
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) > 0


def gone(serving: Serving, kind: str, leave) -> None:
    """Check that an answer ends at once, and its slot is free, when its client leaves."""
    before = answers(serving, kind, "cancelled")
    leave()
    until(lambda: answers(serving, kind, "cancelled") == before + 1)
    until(lambda: serving.systems[ENDLESS].decoder.load == (0, 0))


def test_a_client_that_leaves_in_mid_answer_frees_its_slot(sdk, serving):
    def leave():
        options = {"model": ENDLESS, "voice": "alloy", "input": TEXT, "response_format": "wav"}
        with sdk.audio.speech.with_streaming_response.create(**options) as response:
            next(response.iter_bytes(100))

    gone(serving, "speech", leave)


def test_a_client_that_leaves_before_a_whole_answer_frees_its_slot(sdk, serving):
    def leave():
        audio = {"voice": "alloy", "format": "mp3"}
        messages = [{"role": "user", "content": WRITTEN}]
        with pytest.raises(openai.APITimeoutError):
            sdk.with_options(timeout=0.5).chat.completions.create(
                model=ENDLESS, modalities=["text", "audio"], audio=audio, messages=messages
            )

    gone(serving, "chat", leave)


def test_the_published_client_gets_playable_audio(url, asked):
    request = {"audio": base64.b64encode(QUESTION.read_bytes()).decode(), "stream_stride": 4, "max_tokens": 2048}
    data = b""
    with httpx.stream("POST", f"{url}/chat", content=json.dumps(request), timeout=60) as response:  # without a type
        assert response.status_code == 200
        assert response.headers["content-type"] == "audio/wav"
        assert response.headers["transfer-encoding"] == "chunked"
        for chunk in response.iter_bytes(4096):
            data += chunk
    assert same(data, asked)
