"""Live sessions of the server: time to the first sound of an answer, late chunks, and throughput.

    python benchmarks/serve_load.py               # the mini system, 1, 4, 8 and 16 sessions at once, 4 turns each
    python benchmarks/serve_load.py --quick       # 1 and 8 sessions, 1 turn each

`omnikit serve` runs in a process of its own and is spoken to over WebSocket on loopback. Each session sends recorded
questions in real time like an open microphone, silence in between, hears the answer to its end, and asks again after a
random pause. The pause after which the server takes a question for ended is no fault of the server: when it is over
(the detector's own delay) is computed afterwards from the audio that was sent. One session is one answer after another,
with which the others are compared. The ratios are printed last; the exit status is 1 if a goal is missed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from omnikit.audio.io import load_audio
from omnikit.bench.table import print_goals
from omnikit.engines import AUTO, ENGINES
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.evaluate.result_tables import markdown_table
from omnikit.option_ranges import COUNT
from omnikit.serve.audio_formats import InputAudio, OutputAudio
from omnikit.serve.metrics import TOLERANCE
from omnikit.serve.realtime.actions import RATE, Detection, SpeechStopped
from omnikit.serve.realtime.turn_detector import TurnDetector

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = sorted((ROOT / "egs" / "mini" / "questions").glob("*.wav"))
SESSIONS, QUICK = (1, 4, 8, 16), (1, 8)
"""Numbers of concurrent sessions that the benchmark measures."""
JUDGED = 8
"""Number of sessions that the goals are about."""
MOST_AFTER_DETECTION = 0.4
"""Maximum seconds (p95) from the end of a turn's pause to the first chunk of the answer."""
CHUNK = RATE // 25
"""Samples in a message of a client: 40 ms."""
DETECTION = Detection(silence_ms=500)
LONGEST_TURN = 60.0
"""Seconds after which a turn without an end is an error."""


@dataclass
class LiveTurn:
    """A question and its answer, in seconds of the client's clock."""

    ended: int = 0  # number of the chunk with the question's last speech
    first: float | None = None  # arrival of the first chunk with samples
    sound: float = 0.0  # duration of the samples that arrived
    late: float = 0.0  # longest delay of a chunk beyond the end of the previous one's playback
    done: bool = False

    def take(self, samples: int, now: float) -> None:
        """Record the arrival of a chunk of samples."""
        self.first = now if self.first is None else self.first
        self.late = max(self.late, now - self.first - self.sound)
        self.sound += samples / RATE

    def over(self, now: float) -> bool:
        """Return whether the answer has been received and played."""
        return self.done and (self.first is None or now >= self.first + self.sound)


@dataclass(frozen=True)
class TurnTimes:
    """Measurements of one turn, in seconds."""

    first: float  # from the end of the question's speech to the first chunk with samples
    detection: float  # from the same moment until the audio that ends the turn was sent
    late: float
    sound: float

    @property
    def beyond(self) -> float:
        """Seconds from the detector's own delay to the first chunk."""
        return self.first - self.detection


@dataclass
class Microphone:
    """A client that sends one chunk after another in real time, and remembers what it sent and when."""

    socket: ClientConnection
    began: float = field(default_factory=time.perf_counter)
    chunks: list[np.ndarray] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    async def send(self, chunk: np.ndarray) -> None:
        """Send a chunk [n] when its last sample would have been recorded."""
        due = self.began + (len(self.chunks) + 1) * CHUNK / RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        data = OutputAudio("audio/pcm", RATE).push(chunk)
        self.chunks.append(InputAudio("audio/pcm").push(data))  # as the server hears it
        self.times.append(time.perf_counter())
        await self.socket.send(
            json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()})
        )


class LiveSession:
    """One live session: questions are asked, and the answers heard to their ends.

    Args:
        url: address of the WebSocket.
        rng: generator of the pauses and of the choice of questions.
    """

    def __init__(self, url: str, rng: np.random.Generator):
        self.url, self.rng = url, rng
        self.turns: list[LiveTurn] = []
        self.ready = asyncio.Event()

    async def run(self, turns: int) -> list[TurnTimes]:
        """Ask a number of questions and return the measurements of their turns.

        Raises:
            ValueError: the server reported an error, a turn did not end, or was not detected as one.
        """
        async with connect(self.url, max_size=None) as socket:
            hearing = asyncio.create_task(self._hear(socket))
            speaking = asyncio.create_task(self._speak(socket, turns))
            await asyncio.wait([hearing, speaking], return_when=asyncio.FIRST_COMPLETED)
            if not speaking.done():
                speaking.cancel()
                hearing.result()
            hearing.cancel()
            microphone = speaking.result()
        return await asyncio.to_thread(measure_turns, self.turns, microphone)

    async def _hear(self, socket: ClientConnection) -> None:
        async for message in socket:
            now, event = time.perf_counter(), json.loads(message)
            match event["type"]:
                case "session.updated":
                    self.ready.set()
                case "response.output_audio.delta":
                    self.turns[-1].take(len(base64.b64decode(event["delta"])) // 2, now)
                case "response.done":
                    self.turns[-1].done = True
                case "error":
                    raise ValueError(f"the server reported an error: {event['error']['message']}")
        raise ValueError("the server closed the connection")

    async def _speak(self, socket: ClientConnection, turns: int) -> Microphone:
        detection = {"type": "server_vad", "silence_duration_ms": DETECTION.silence_ms}
        settings = {"type": "realtime", "audio": {"input": {"turn_detection": detection}}}
        await socket.send(json.dumps({"type": "session.update", "session": settings}))
        await self.ready.wait()
        microphone, silence = Microphone(socket), np.zeros(CHUNK, np.float32)
        for _ in range(turns):
            for _ in range(int(self.rng.uniform(0.3, 2.0) * RATE / CHUNK)):
                await microphone.send(silence)
            await self._ask(microphone, silence)
        return microphone

    async def _ask(self, microphone: Microphone, silence: np.ndarray) -> None:
        question, last = load_question(QUESTIONS[self.rng.integers(len(QUESTIONS))])
        turn = LiveTurn(ended=len(microphone.chunks) + last // CHUNK)
        self.turns.append(turn)
        for chunk in question:
            await microphone.send(chunk)
        limit = time.perf_counter() + LONGEST_TURN
        while not turn.over(now := time.perf_counter()):
            if now > limit:
                raise ValueError(f"no end of an answer within {LONGEST_TURN:g} s")
            await microphone.send(silence)


def load_question(path: Path) -> tuple[np.ndarray, int]:
    """Return a recorded question as chunks [C, `CHUNK`], and the number of its last sample of speech."""
    samples = load_audio(path, RATE).numpy()
    last = int(np.nonzero(np.abs(samples) > 0.03 * np.abs(samples).max())[0][-1])
    return np.pad(samples, (0, -len(samples) % CHUNK)).reshape(-1, CHUNK), last


def measure_turns(turns: list[LiveTurn], microphone: Microphone) -> list[TurnTimes]:
    """Return the measurements of a session's turns, for which its audio is heard once more by a turn detector.

    Raises:
        ValueError: the detector finds another number of turns, or an answer has no sound.
    """
    detector = TurnDetector(DETECTION)
    stops = [
        sent
        for sent, chunk in zip(microphone.times, microphone.chunks, strict=True)
        for report in detector.push(chunk)
        if isinstance(report, SpeechStopped)
    ]
    if len(stops) != len(turns) or any(turn.first is None for turn in turns):
        heard = sum(turn.first is not None for turn in turns)
        raise ValueError(f"{len(turns)} questions were asked, {len(stops)} turns detected, {heard} answers heard")
    ends = [microphone.times[turn.ended] for turn in turns]
    return [
        TurnTimes(turn.first - end, stop - end, turn.late, turn.sound)
        for turn, end, stop in zip(turns, ends, stops, strict=True)
    ]


async def measure(url: str, sessions: int, turns: int) -> tuple[float, list[TurnTimes]]:
    """Hold a number of sessions at once; return the seconds that it took and the measurements of all turns."""
    talks = [LiveSession(url, np.random.default_rng(number)).run(turns) for number in range(sessions)]
    began = time.perf_counter()
    found = await asyncio.gather(*talks)
    return time.perf_counter() - began, [each for talk in found for each in talk]


@contextmanager
def serve(arguments: list[str]) -> Iterator[str]:
    """Context manager that runs `omnikit serve` with some arguments, and yields the address of its WebSocket.

    Raises:
        ValueError: it does not start; its errors stand on stderr.
    """
    command = [sys.executable, "-m", "omnikit.cli", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        try:
            address = server.stdout.readline().split(" ")[0]
            if not address:
                raise ValueError("the server did not start")
            yield f"{address.replace('http', 'ws', 1)}/v1/realtime"
        finally:
            server.terminate()


def report(figures: dict[int, tuple[float, list[TurnTimes]]]) -> int:
    """Print the table of measurements and the figures with their goals; return 1 if a goal is missed, else 0."""
    rows = []
    for sessions, (seconds, turns) in figures.items():
        first, slow = np.percentile([turn.first for turn in turns], (50, 95)) * 1000
        own = np.percentile([turn.detection for turn in turns], 50) * 1000
        beyond, beyond_slow = np.percentile([turn.beyond for turn in turns], (50, 95)) * 1000
        late = sum(turn.late > TOLERANCE for turn in turns)
        sound = sum(turn.sound for turn in turns) / seconds
        rows.append([str(sessions), f"{first:.0f} / {slow:.0f}", f"{own:.0f}", f"{beyond:.0f} / {beyond_slow:.0f}",
                     f"{late} of {len(turns)}", f"{max(turn.late for turn in turns) * 1000:.0f}",
                     f"{60 * len(turns) / seconds:.0f}", f"{sound:.2f}"])  # fmt: skip
    header = ["sessions", "first sound after the end of speech, ms, p50 / p95", "detector's own delay, ms, p50"]
    header += ["first sound beyond it, ms, p50 / p95", "answers with a late chunk", "latest, ms", "answers per minute"]
    print(markdown_table([*header, "seconds of sound per second"], rows))
    alone = len(figures[1][1]) / figures[1][0]
    for sessions, (seconds, turns) in figures.items():
        if sessions > 1:
            print(f"{sessions} sessions: {len(turns) / seconds / alone:.2f} x the answers of one after another")
    return judge(figures[JUDGED][1])


def judge(turns: list[TurnTimes]) -> int:
    """Print the goals of 8 sessions and whether they are reached; return 1 if one is missed, else 0."""
    beyond = float(np.percentile([turn.beyond for turn in turns], 95))
    late = max(turn.late for turn in turns)
    goals = (
        (f"first sound at {JUDGED} beyond the detector's own delay, p95: {beyond * 1000:.0f} ms "
         f"(goal {MOST_AFTER_DETECTION * 1000:g} at most)", beyond <= MOST_AFTER_DETECTION),
        (f"latest chunk at {JUDGED}: {late * 1000:.0f} ms after its playing time "
         f"(goal 0, measured to {TOLERANCE * 1000:g})", late <= TOLERANCE),
    )  # fmt: skip
    return print_goals(goals)


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="folder or hub id of a system (default: the shipped mini system)")
    parser.add_argument("--engine", default=AUTO, choices=(AUTO, *ENGINES), help="engine of the server (default: auto)")
    parser.add_argument("--device", default="cpu", help="device of the model, such as cuda (default: cpu)")
    parser.add_argument("--turns", type=COUNT, default=4, help="number of turns of each session (default: 4)")
    parser.add_argument("--quick", action="store_true", help="1 and 8 sessions, one turn each")
    options = parser.parse_args()
    given = ["--engine", options.engine, "--device", options.device]
    given += [] if options.checkpoint is None else ["--checkpoint", options.checkpoint]
    with serve(given) as url:
        asyncio.run(measure(url, 1, 1))  # untimed: first uses of everything
        figures = {
            sessions: asyncio.run(measure(url, sessions, 1 if options.quick else options.turns))
            for sessions in (QUICK if options.quick else SESSIONS)
        }
    return report(figures)


if __name__ == "__main__":
    with bad_input_exits():
        status = main()
    sys.exit(status)
