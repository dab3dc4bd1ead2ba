"""Requests of all kinds for tests with many of them: well-formed ones with their answers, and broken ones.

A client that misbehaves needs bytes of its own, so all of them are written with sockets and `http.client`.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
import soundfile
import soxr
from websockets.sync.client import ClientConnection, connect

from tests.serve.conftest import NAME, QUESTION

PATIENCE = 60.0
"""Seconds after which a request counts as hanging."""
TEXT = "what is two plus two"
RECORDING = QUESTION.read_bytes()
SOUND = base64.b64encode(RECORDING).decode()
RATE = 24000
OPTIONS = {"open_timeout": PATIENCE, "close_timeout": PATIENCE, "ping_interval": None, "compression": None}
"""Options of the WebSockets; a busy machine is no reason to end one."""


@dataclass(frozen=True)
class Found:
    """An answer: its text, and its samples [n] in -1..1."""

    text: str = ""
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def like(self, other: Found, tolerance: float) -> bool:
        """Return whether two answers have the same text and, but for a tolerance, the same samples."""
        if (self.text, len(self.samples)) != (other.text, len(other.samples)):
            return False
        return len(self.samples) == 0 or float(np.abs(self.samples - other.samples).max()) <= tolerance


# HTTP


@dataclass(frozen=True)
class Response:
    """A whole HTTP response."""

    status: int
    body: bytes

    @property
    def json(self) -> dict:
        """The body as JSON."""
        assert self.status == 200, self.body
        return json.loads(self.body)

    @property
    def events(self) -> list[dict]:
        """The data of the server-sent events of the body."""
        assert self.status == 200, self.body
        return event_data(self.body.decode())


def event_data(text: str) -> list[dict]:
    """Return the parsed JSON data of server-sent events, without the `[DONE]` that ends a chat completion."""
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def call(url: str, path: str, body: bytes | dict | None = None, method: str = "POST", **headers: str) -> Response:
    """Send a request over a connection of its own, and return the response."""
    if isinstance(body, dict):
        body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return Response(response.status, response.read())
    finally:
        connection.close()


def upload(url: str, file: bytes = RECORDING, **fields: str) -> Response:
    """Send a form with a file to the transcriptions."""
    body, kind = form(file, model=NAME, **fields)
    return call(url, "/v1/audio/transcriptions", body, Content_Type=kind)


def form(file: bytes, **fields: str) -> tuple[bytes, str]:
    """Return a form with a file as a body and its type."""
    head = '--b\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    parts = [head.format(name, "").encode() + value.encode() for name, value in fields.items()]
    parts.append(head.format("file", '; filename="a.wav"').encode() + file)
    return b"\r\n".join([*parts, b"--b--\r\n"]), "multipart/form-data; boundary=b"


def pcm(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


def decoded(file: bytes) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(file), dtype="float32")
    assert rate == RATE
    return samples


# well-formed requests


def speech(url: str, format: str) -> Found:
    response = call(url, "/v1/audio/speech", {"model": NAME, "input": "five", "response_format": format})
    assert response.status == 200, response.body
    return Found("", pcm(response.body) if format == "pcm" else decoded(response.body))


def speech_events(url: str) -> Found:
    body = {"model": NAME, "input": "five", "response_format": "pcm", "stream_format": "sse"}
    events = call(url, "/v1/audio/speech", body).events
    assert events[-1]["type"] == "speech.audio.done"
    return Found("", pcm(b"".join(base64.b64decode(event["audio"]) for event in events[:-1])))


def transcription(url: str) -> Found:
    return Found(upload(url).json["text"])


def transcription_events(url: str) -> Found:
    return Found(upload(url, stream="true").events[-1]["text"])


def spoken() -> dict:
    return {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}]}


def asked(url: str, *messages: dict, **options: object) -> Response:
    return call(url, "/v1/chat/completions", {"model": NAME, "messages": list(messages), **options})


def dialog(url: str) -> Found:
    said = [("user", TEXT), ("assistant", "four"), ("user", "and five")]
    found = asked(url, *({"role": role, "content": text} for role, text in said)).json
    return Found(found["choices"][0]["message"]["content"])


def written_events(url: str) -> Found:
    events = asked(url, {"role": "user", "content": TEXT}, stream=True).events
    deltas = [event["choices"][0]["delta"] for event in events]
    return Found("".join(delta.get("content") or "" for delta in deltas))


SPOKEN_ANSWER = {"modalities": ["text", "audio"]}


def spoken_answer(url: str) -> Found:
    found = asked(url, spoken(), **SPOKEN_ANSWER, audio={"format": "flac"}).json["choices"][0]["message"]["audio"]
    return Found(found["transcript"], decoded(base64.b64decode(found["data"])))


def spoken_answer_events(url: str) -> Found:
    events = asked(url, spoken(), **SPOKEN_ANSWER, audio={"format": "pcm16"}, stream=True).events
    parts = [event["choices"][0]["delta"].get("audio", {}) for event in events]
    data = b"".join(base64.b64decode(part["data"]) for part in parts if "data" in part)
    return Found("".join(part.get("transcript", "") for part in parts), pcm(data))


def published(url: str) -> Found:
    response = call(url, "/chat", {"audio": SOUND, "stream_stride": 4, "max_tokens": 2048})
    assert response.status == 200, response.body
    return Found("", pcm(response.body))


# Realtime


class Client:
    """A client of an open Realtime session."""

    def __init__(self, socket: ClientConnection):
        self.socket = socket

    def send(self, kind: str, **fields: object) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def until(self, *kinds: str) -> list[dict]:
        """Receive the events up to one of some types; the only error may be that an answer had ended before."""
        events = [json.loads(self.socket.recv(PATIENCE))]
        while (last := events[-1])["type"] not in kinds:
            assert last["type"] != "error" or last["error"]["code"] == "response_cancel_not_active", last
            events.append(json.loads(self.socket.recv(PATIENCE)))
        return events

    def until_error(self) -> None:
        """Receive events up to an error."""
        while json.loads(self.socket.recv(PATIENCE))["type"] != "error":
            pass

    def write(self, text: str = TEXT) -> None:
        """Ask a written question."""
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        self.send("conversation.item.create", item=item)
        self.send("response.create")

    def speak(self) -> None:
        """Send the recorded question in parts of 0.1 s."""
        samples, rate = soundfile.read(io.BytesIO(RECORDING), dtype="float32")
        data = (soxr.resample(samples, rate, RATE) * 32767).astype("<i2").tobytes()
        for at in range(0, len(data), 4800):
            self.send("input_audio_buffer.append", audio=base64.b64encode(data[at : at + 4800]).decode())

    def answer(self) -> Found:
        """Receive a response to its end."""
        events = self.until("response.done")
        assert events[-1]["response"]["status"] in ("completed", "incomplete"), events[-1]
        texts = [event["delta"] for event in events if event["type"] == "response.output_audio_transcript.delta"]
        sounds = [event["delta"] for event in events if event["type"] == "response.output_audio.delta"]
        return Found("".join(texts), pcm(b"".join(map(base64.b64decode, sounds))))


@contextmanager
def session(url: str, detection: dict | None = None) -> Iterator[Client]:
    """Open a Realtime session, with push to talk unless a turn detection is given."""
    with connect(url.replace("http", "ws") + "/v1/realtime", **OPTIONS) as opened:
        client = Client(opened)
        client.until("session.created")
        settings = {"type": "realtime", "audio": {"input": {"turn_detection": detection}}}
        client.send("session.update", session=settings)
        client.until("session.updated")
        yield client


def written_turns(url: str) -> Found:
    with session(url) as client:
        client.write()
        first = client.answer()
        client.write("and five")
        second = client.answer()
    return Found(f"{first.text} | {second.text}", np.concatenate([first.samples, second.samples]))


def pushed_turn(url: str) -> Found:
    with session(url) as client:
        client.speak()
        client.send("input_audio_buffer.commit")
        client.send("response.create")
        return client.answer()


def detected_turn(url: str) -> Found:
    with session(url, {"type": "server_vad"}) as client:
        client.speak()
        silence = base64.b64encode(bytes(2 * RATE)).decode()
        client.send("input_audio_buffer.append", audio=silence)
        return client.answer()


def interrupted_turn(url: str) -> Found:
    """Ask, cancel the answer, and ask something else, which is answered as if it had been the first question."""
    with session(url) as client:
        client.write("five")
        item = client.until("response.output_item.added")[-1]["item"]["id"]
        client.send("response.cancel")
        client.until("response.done")
        client.send("conversation.item.delete", item_id=item)
        client.until("conversation.item.deleted")
        client.write()
        return client.answer()


WELL_FORMED: dict[str, Callable[[str], Found]] = {
    "speech as pcm": lambda url: speech(url, "pcm"),
    "speech as wav": lambda url: speech(url, "wav"),
    "speech as mp3": lambda url: speech(url, "mp3"),
    "speech as opus": lambda url: speech(url, "opus"),
    "speech as events": speech_events,
    "transcription": transcription,
    "transcription as events": transcription_events,
    "dialog": dialog,
    "written answer as events": written_events,
    "spoken answer": spoken_answer,
    "spoken answer as events": spoken_answer_events,
    "published": published,
    "Realtime, written": written_turns,
    "Realtime, pushed": pushed_turn,
    "Realtime, detected": detected_turn,
    "Realtime, interrupted": interrupted_turn,
}
"""Requests that are answered, each a function of the server's address that returns the answer."""
TOLERANCES = {"speech as mp3": 0.02, "speech as opus": 0.02}
"""Greatest differences of samples between two answers in lossy formats; 2 / 32768 in all others."""


# broken requests


def refused(response: Response, status: int = 400) -> None:
    """Check that a request was refused with an error in OpenAI's form."""
    assert response.status == status, response
    assert set(json.loads(response.body)["error"]) == {"message", "type", "code", "param"}


def head(path: str, length: int, kind: str = "application/json") -> bytes:
    """Return the head of a POST request."""
    lines = f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {kind}", f"Content-Length: {length}"
    return "\r\n".join([*lines, "", ""]).encode()


@contextmanager
def raw(url: str, data: bytes, *, reset: bool = False) -> Iterator[socket.socket]:
    """Open a connection, send some bytes, and close it at the end.

    Args:
        reset: whether it is reset instead, as by a client that crashes.
    """
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE) as opened:
        opened.sendall(data)
        yield opened
        if reset:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def received(opened: socket.socket) -> bytes:
    """Receive everything until the server closes the connection."""
    data = b""
    try:
        while part := opened.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


def receive_until(opened: socket.socket, mark: bytes) -> None:
    """Receive bytes until a mark is among them."""
    got = b""
    while mark not in got:
        part = opened.recv(4096)
        assert part, got
        got += part


def left(url: str, data: bytes, *, reset: bool = False, first: bytes = b"") -> None:
    """Send some bytes and leave, if `first` is given once that has been received."""
    with raw(url, data, reset=reset) as opened:
        receive_until(opened, first)


def body_cut_off(url: str) -> None:
    left(url, head("/v1/audio/speech", 1000) + b'{"model": "mini", "inp')


def form_cut_off(url: str) -> None:
    body, kind = form(RECORDING, model=NAME)
    left(url, head("/v1/audio/transcriptions", len(body), kind) + body[:20_000], reset=True)


def chunk_cut_off(url: str) -> None:
    start = b"POST /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    left(url, start + b'ff\r\n{"audio": "UklG')


def no_http(url: str) -> None:
    with raw(url, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) + b"\r\n\r\n") as opened:
        assert received(opened).startswith(b"HTTP/1.1 400")


def stream_request(path: str, body: dict) -> bytes:
    data = json.dumps(body).encode()
    return head(path, len(data)) + data


LONG = {"model": NAME, "input": TEXT, "response_format": "pcm"}
EVENTS = {"model": NAME, "messages": [spoken()], "stream": True, **SPOKEN_ANSWER, "audio": {"format": "pcm16"}}


def handshake(length: int = 1000) -> bytes:
    lines = (
        "GET /v1/realtime HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13", "", "",
    )  # fmt: skip
    return "\r\n".join(lines).encode()[:length]


def frame(data: bytes, *, length: int | None = None, opcode: int = 0x81, masked: bool = True) -> bytes:
    """Return a WebSocket frame; the announced length may be another than that of the data, the mask is 0."""
    announced = struct.pack("!BBQ", opcode, (0x80 if masked else 0) | 127, len(data) if length is None else length)
    return announced + (bytes(4) if masked else b"") + data


@contextmanager
def bare_session(url: str, *, reset: bool = False) -> Iterator[socket.socket]:
    """Open a Realtime session, and give its connection."""
    with raw(url, handshake(), reset=reset) as opened:
        receive_until(opened, b"session.created")
        yield opened


def half_a_frame(url: str) -> None:
    with bare_session(url, reset=True) as opened:
        opened.sendall(frame(b'{"type": "respo', length=1000))


def closes(data: bytes, code: int) -> Callable[[str], None]:
    """Return a request whose frames make the server close the session with a code."""

    def run(url: str) -> None:
        with bare_session(url) as opened:
            opened.sendall(data)
            assert struct.pack("!H", code) in received(opened)

    return run


def mistakes(url: str) -> None:
    """Make mistakes in a session, each of which is answered by an error, and leave it without a farewell."""
    with session(url) as client:
        for message in ("{", "[]", b"\xff\x00", '{"type": "x"}', '{"type": "response.create", "response": 3}'):
            client.socket.send(message)
            client.until_error()
        client.send("input_audio_buffer.append", audio="no!")
        client.until_error()
        client.send("input_audio_buffer.append", audio=base64.b64encode(b"odd").decode())
        client.socket.socket.shutdown(socket.SHUT_RDWR)


def left_in_mid_answer(url: str) -> None:
    with session(url) as client:
        client.speak()
        client.send("input_audio_buffer.commit")
        client.send("response.create")
        client.until("response.output_audio.delta")
        client.socket.socket.shutdown(socket.SHUT_RDWR)


def left_while_speaking(url: str) -> None:
    with session(url, {"type": "server_vad"}) as client:
        client.speak()
        client.socket.socket.shutdown(socket.SHUT_RDWR)


BROKEN: dict[str, Callable[[str], None]] = {
    "body cut off": body_cut_off,
    "form cut off": form_cut_off,
    "chunk cut off": chunk_cut_off,
    "head cut off": lambda url: left(url, head("/chat", 10)[:40]),
    "no HTTP": no_http,
    "JSON cut off": lambda url: refused(call(url, "/v1/audio/speech", b'{"model": "mini", "inp')),
    "wrong types": lambda url: refused(call(url, "/v1/chat/completions", {"model": 1, "messages": {"role": 2}})),
    "no base64": lambda url: refused(call(url, "/chat", {"audio": SOUND[:1001] + "!"})),
    "recording cut off": lambda url: refused(upload(url, RECORDING[:10_001])),
    "no recording": lambda url: refused(upload(url, b"RIFF" + bytes(1000))),
    "form without an end": lambda url: refused(
        call(url, "/v1/audio/transcriptions", form(RECORDING)[0][:5000], Content_Type="multipart/form-data; boundary=b")
    ),
    "unknown model": lambda url: refused(call(url, "/v1/audio/speech", {"model": "../x", "input": "five"}), 404),
    "unknown letters": lambda url: refused(call(url, "/v1/audio/speech", {"model": NAME, "input": "日本"})),
    "unknown path": lambda url: refused(call(url, "/v1/nothing", {}), 404),
    "wrong method": lambda url: refused(call(url, "/v1/audio/speech", method="GET"), 404),
    "foreign page": lambda url: refused(call(url, "/chat", {"audio": SOUND}, Origin="https://evil.example"), 403),
    "leaves before the answer": lambda url: left(url, stream_request("/v1/audio/speech", LONG)),
    "leaves in mid-answer": lambda url: left(url, stream_request("/v1/audio/speech", LONG), first=b"\r\n\r\n"),
    "breaks in mid-events": lambda url: left(
        url, stream_request("/v1/chat/completions", EVENTS), first=b"data: ", reset=True
    ),
    "half a handshake": lambda url: left(url, handshake(120)),
    "half a frame": half_a_frame,
    "frame without a mask": closes(frame(b"{}", masked=False), 1002),
    "frame of a terabyte": closes(frame(b"{}", length=2**40), 1009),
    "text that is no UTF-8": closes(frame(b'{"type": "\xff"}'), 1007),
    "mistakes": mistakes,
    "left in mid-answer": left_in_mid_answer,
    "left while speaking": left_while_speaking,
}
"""Requests that are refused or cut off, each a function of the server's address that checks how they end."""
