"""Test that bad input is refused with status 400 in OpenAI's form, in memory, and that odd but good input is not."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

from omnikit.serve.app import create_app
from omnikit.serve.rest import remembered
from omnikit.serve.rest.errors import bad_input
from omnikit.serve.serving import Serving
from omnikit.serve.settings import ServerSettings
from tests.serve.conftest import NAME, QUESTION

RECORDING = QUESTION.read_bytes()
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def served(omni) -> Iterator[TestClient]:
    app = create_app(Serving(ServerSettings(), {NAME: omni}))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def wav(samples: np.ndarray, rate: int = 16000, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", **options)
    return file.getvalue()


def patched(data: bytes, at: int, number: int) -> bytes:
    """Return a file in whose header a number of 32 bits is replaced."""
    return data[:at] + struct.pack("<I", number) + data[at + 4 :]


def refused(response, param: str | None, *words: str) -> None:
    """Check that a response refuses bad input in OpenAI's form."""
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert all(word in error["message"] for word in words), error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) <= 1000


FILES = {
    "empty": (b"", "0 bytes"),
    "text": (b"not a recording", "not an audio file"),
    "0 Hz": (patched(RECORDING, 24, 0), "not an audio file"),
    "NaN": (wav(np.full(1600, np.nan), subtype="FLOAT"), "no numbers"),
    "truncated": (RECORDING[: len(RECORDING) // 2], "cut short"),
    "header alone": (RECORDING[:44], "cut short"),
    "announces a gigabyte": (patched(RECORDING, 40, 10**9), "cut short"),
    "without samples": (wav(np.zeros(0)), ""),
    "too long": (wav(np.zeros(31 * 8000), 8000), "31.0 s long, the limit is 30 s"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_recordings(served, omni, name):
    data, words = FILES[name]
    found = served.post("/v1/audio/transcriptions", data={"model": NAME}, files={"file": ("../x\n.wav", data)})
    refused(found, "file", "file: ", words)
    text = base64.b64encode(data).decode()
    refused(served.post("/chat", json={"audio": text}), "audio", "audio: ", words)
    part = {"type": "input_audio", "input_audio": {"data": text, "format": "wav"}}
    body = {"model": NAME, "messages": [{"role": "user", "content": [part]}]}
    refused(served.post("/v1/chat/completions", json=body), "messages.0.content.0", words)
    assert omni.decoder.load == (0, 0)


def test_a_recording_longer_than_the_server_allows(client):
    served = client(max_audio_seconds=0.5)
    found = served.post("/v1/audio/transcriptions", data={"model": NAME}, files={"file": RECORDING})
    refused(found, "file", "the limit is 0.5 s")


def test_recordings_of_many_channels_are_mixed(served, omni):
    samples, rate = soundfile.read(io.BytesIO(RECORDING))
    data = wav(np.repeat(samples[:, None], 32, axis=1), rate)
    found = served.post("/v1/audio/transcriptions", data={"model": NAME}, files={"file": data})
    assert found.json()["text"] == omni.transcribe(QUESTION)


def test_large_recordings_stay_in_memory(served, monkeypatch):
    def rollover(file):
        raise AssertionError("a temporary file")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", rollover)
    data = wav(np.zeros(31 * 48000), 48000, subtype="PCM_24")  # 4 MB
    found = served.post("/v1/audio/transcriptions", data={"model": NAME}, files={"file": data})
    refused(found, "file", "31.0 s long")


FORM = "multipart/form-data; boundary=x"


def field(name: str, value: str = "", more: str = "") -> str:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n'


@pytest.mark.parametrize(
    ("kind", "body", "param"),
    [
        ("application/json", "{}", "file"),
        (None, "", "file"),
        ("multipart/form-data", "--x--", None),
        (FORM, "", "model"),
        (FORM, "no form", None),
        (FORM, field("model", NAME) + "--x--\r\n", "file"),
        (FORM, field("model", NAME) + field("file", "text") + "--x--\r\n", "file"),
        (FORM, field("file", "text", '; filename="a"') + "--x--\r\n", "model"),
        (FORM, field("file", "a", '; filename="a"') * 2 + "--x--\r\n", None),
        (FORM, field("a") * 101 + "--x--\r\n", None),
        (FORM, field("model", "x" * 2**21) + "--x--\r\n", None),
        (FORM, field("model", NAME) + field("temperature", "hot") + "--x--\r\n", "temperature"),
        (FORM, field("model", NAME) + field("temperature", "nan") + "--x--\r\n", "temperature"),
        (FORM, field("model", NAME) + field("response_format", "diarized_json") + "--x--\r\n", "response_format"),
        (FORM, field("model", NAME) + field("stream", "perhaps") + "--x--\r\n", "stream"),
    ],
)
def test_bad_forms(served, kind, body, param):
    headers = {} if kind is None else {"content-type": kind}
    refused(served.post("/v1/audio/transcriptions", content=body.encode(), headers=headers), param)


def test_subtitles_are_not_streamed(served):
    form = {"model": NAME, "stream": "true", "response_format": "srt"}
    refused(served.post("/v1/audio/transcriptions", data=form, files={"file": RECORDING}), "stream", "srt")


BODIES = [
    b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"{" * 100_000, b"[" * 100_000, b'{"model": "\\ud800"}',
    b'{"model": 1, "input": 2, "messages": 3, "audio": 4}', b'{"model": "mini"}',
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:20]))
@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/chat/completions", "/chat"])
def test_bad_json(served, path, body):
    found = served.post(path, content=body, headers=JSON)
    assert found.status_code == 400
    assert found.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": "  "}, "input"),
        ({"input": "a\x00b"}, "input"),
        ({"input": ["five"]}, "input"),
        ({"speed": 9}, "speed"),
        ({"speed": float("nan")}, "speed"),
        ({"voice": 3}, "voice"),
        ({"response_format": "../wav"}, "response_format"),
        ({"stream_format": "x"}, "stream_format"),
    ],
)
def test_bad_speech_requests(served, change, param):
    body = {"model": NAME, "input": "five", "voice": "alloy"} | change
    found = served.post("/v1/audio/speech", content=json.dumps(body), headers=JSON)
    error = found.json()["error"]
    assert found.status_code == 400
    assert error["param"].startswith(param)


@pytest.mark.parametrize("data", ["!", "UklG\n", "UklGR", "ä", "data:audio/wav;base64,UklG"])
def test_bad_base64(served, data):
    refused(served.post("/chat", json={"audio": data}), "audio", "not base64")


@pytest.mark.parametrize("change", [{"max_tokens": 0}, {"stream_stride": "x"}, {"audio": None}])
def test_bad_published_requests(served, change):
    body = {"audio": base64.b64encode(RECORDING).decode()} | change
    refused(served.post("/chat", json=body), next(iter(change)))


def test_too_many_recordings(served):
    part = {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}}
    turn = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "five"}]
    body = {"model": NAME, "messages": [*turn * 32, turn[0]]}
    refused(served.post("/v1/chat/completions", json=body), "messages", "at most 32 recordings")


def test_too_much_text(served):
    body = {"model": NAME, "messages": [{"role": "user", "content": "five " * 9000}] * 3}
    refused(served.post("/v1/chat/completions", json=body), "messages", "135000 characters of text, at most 100000")


def test_the_error_of_a_long_text_says_which_characters_are_wrong(served):
    body = {"model": NAME, "input": "five " * 500 + "日本", "voice": "alloy"}
    refused(served.post("/v1/audio/speech", json=body), "input", "the tokenizer lacks '日本'")


def test_errors_of_earlier_turns_name_them(served):
    said = [("user", "hello"), ("assistant", "日本"), ("user", "five")]
    body = {"model": NAME, "messages": [{"role": role, "content": text} for role, text in said]}
    refused(served.post("/v1/chat/completions", json=body), "messages.0", "日本")


def test_the_openapi_document_has_all_calls_and_no_422(served):
    document = served.get("/openapi.json").json()
    calls = {"/v1/models", "/v1/audio/speech", "/v1/audio/transcriptions", "/v1/chat/completions", "/chat"}
    assert calls <= set(document["paths"])
    for path in calls:
        for call in document["paths"][path].values():
            assert "422" not in call["responses"]
            assert call["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")
    form = document["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["required"] == ["file", "model"]


@pytest.mark.parametrize("charset", ["undefined", "punycode", "utf-7", "unicode_escape", "utf-8\0"])
def test_forms_in_odd_charsets(served, charset):
    """Some of Python's codecs raise errors of their own, others return lone surrogates."""
    body = "".join(
        f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in (("model", NAME), ("language", "+2AA-\\ud800"))
    )
    kind = f"multipart/form-data; boundary=B; charset={charset}"
    found = served.post("/v1/audio/transcriptions", content=f"{body}--B--\r\n", headers={"content-type": kind})
    refused(found, None, "utf-8")


def test_a_form_type_in_capitals(served):
    kind = {"content-type": "Multipart/Form-Data; boundary=B; charset=UTF-8"}
    refused(served.post("/v1/audio/transcriptions", content="--B--\r\n", headers=kind), "model", "required")


def test_a_list_in_a_form_that_is_no_list_as_well(served):
    fields = {"model": NAME, "include": "logprobs", "include[]": "logprobs"}
    found = served.post("/v1/audio/transcriptions", data=fields, files={"file": RECORDING})
    refused(found, "include", "log probabilities")


def test_a_bad_turn_ends_the_transcriptions_of_all_others(served, monkeypatch):
    ended = []

    async def text_of(serving, omni, asked, decoding) -> str:
        if asked.text == "bad":
            raise bad_input("bad", "messages")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(asked.text)
            raise

    monkeypatch.setattr(remembered, "_text", text_of)
    said = [("user", "slow"), ("assistant", "yes"), ("user", "bad"), ("assistant", "no"), ("user", "two plus two")]
    body = {"model": NAME, "messages": [{"role": role, "content": content} for role, content in said]}
    refused(served.post("/v1/chat/completions", json=body), "messages", "bad")
    assert ended == ["slow"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/audio/speech", "/chat"])
def test_json_without_end_is_refused_before_it_is_decoded(path, served, monkeypatch):
    monkeypatch.setattr("json.loads", lambda *_, **__: pytest.fail("decoded"))
    found = served.post(path, content=b"[" + b"[]," * 2**19 + b"[]]", headers={"Content-Type": "application/json"})
    monkeypatch.undo()
    assert found.status_code == 413 and "at most 1 MiB of JSON besides the audio" in found.json()["error"]["message"]
