"""Players that play speech while it is being generated: sounddevice, or a program that is installed."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import struct
import subprocess
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import monotonic, sleep
from typing import Any

import torch
from torch import Tensor

from omnikit.audio.io import save_audio

AUTO, NEVER = PLAY = ("auto", "never")
"""Values of `--play`: play answers if there is a player, or never."""
PROGRAMS = {
    "ffplay": ["-nodisp", "-autoexit", "-loglevel", "quiet", "-i", "pipe:0"],
    "aplay": ["-q", "-"],
}
"""Arguments of the programs that play a WAV file from their standard input."""
FILE_PROGRAM = "afplay"
"""Program that plays only whole files."""
WAIT_SECONDS = 0.05
"""Seconds between two looks at a sound that is being played."""


class Playback(ABC):
    """The sound of one answer, which is played while it grows.

    Args:
        sample_rate: sample rate of its samples (Hz).
    """

    def __init__(self, sample_rate: int):
        self.sample_rate, self.samples = sample_rate, 0
        self.failed = False
        self.began: float | None = None

    def push(self, wav: Tensor) -> None:
        """Append samples [n] in -1..1."""
        if len(wav):
            self.began = monotonic() if self.began is None else self.began
            self.samples += len(wav)
            self._push(wav)

    @property
    def seconds(self) -> float:
        """Seconds of the sound that have been played by now, estimated by the clock."""
        passed = 0.0 if self.began is None else monotonic() - self.began
        return min(passed, self.samples / self.sample_rate)

    @abstractmethod
    def _push(self, wav: Tensor) -> None:
        """Append samples [n], n > 0, without waiting until they are played."""

    @abstractmethod
    def finish(self) -> None:
        """Wait until all samples have been played."""

    @abstractmethod
    def stop(self) -> None:
        """Stop playing at once."""


class Fed(Playback):
    """A playback whose samples a thread of its own writes to a device, since writing waits for the sound."""

    def __init__(self, sample_rate: int):
        super().__init__(sample_rate)
        self.stopped = False
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def _push(self, wav: Tensor) -> None:
        self._queue.put(as_pcm(wav))

    def _work(self) -> None:
        try:
            while (data := self._queue.get()) is not None:
                self._write(data)
            self._close()
        except Exception:  # no sound device, or the program has ended; the conversation goes on in silence
            self.failed = not self.stopped

    def finish(self) -> None:
        self._queue.put(None)
        while self._thread.is_alive():
            self._thread.join(WAIT_SECONDS)  # in short steps, so that Ctrl-C is noticed

    @abstractmethod
    def _write(self, data: bytes) -> None:
        """Write samples, 16 bits each."""

    @abstractmethod
    def _close(self) -> None:
        """Wait until everything that was written has been played."""


class ProgramPlayback(Fed):
    """A playback by a program that reads samples from its standard input."""

    def __init__(self, command: list[str], sample_rate: int):
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        # in a session of its own, so that Ctrl-C in the terminal reaches this program alone
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **silent)
        super().__init__(sample_rate)
        self._queue.put(wav_header(sample_rate))

    def _write(self, data: bytes) -> None:
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def _close(self) -> None:
        self.process.stdin.close()
        self.failed = bool(self.process.wait()) and not self.stopped

    def stop(self) -> None:
        self.stopped = True  # before the thread finds out that the program has ended
        self._queue.put(None)
        self.process.kill()
        self.process.wait()


class DevicePlayback(Fed):
    """A playback by the package sounddevice on the default device."""

    def __init__(self, sounddevice: Any, sample_rate: int):
        self.stream = sounddevice.RawOutputStream(samplerate=sample_rate, channels=1, dtype="int16")
        self.stream.start()
        super().__init__(sample_rate)

    def _write(self, data: bytes) -> None:
        block = 2 * max(1, int(self.sample_rate * WAIT_SECONDS))
        for begin in range(0, len(data), block):
            if self.stopped:
                return
            self.stream.write(data[begin : begin + block])

    def _close(self) -> None:
        if self.stopped:
            self.stream.abort()
        else:
            self.stream.stop()
        self.stream.close()

    def stop(self) -> None:
        self.stopped = True
        self._queue.put(None)
        self._thread.join(1.0)  # the thread closes the stream, which nobody may do while it is being written to


class FilePlayback(Playback):
    """A playback by a program that plays whole files only, so it begins when the answer is whole."""

    def __init__(self, program: str, sample_rate: int):
        super().__init__(sample_rate)
        self.program, self.wavs = program, []
        self.process: subprocess.Popen | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the sound that have been played by now, estimated by the clock."""
        return 0.0 if self.process is None else super().seconds

    def _push(self, wav: Tensor) -> None:
        self.wavs.append(wav)

    def finish(self) -> None:
        if not self.wavs:
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "answer.wav"
            save_audio(file, torch.cat(self.wavs), self.sample_rate)
            self.process, self.began = subprocess.Popen([self.program, str(file)], start_new_session=True), monotonic()
            while self.process.poll() is None:
                sleep(WAIT_SECONDS)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Player:
    """A way to play sounds: the package sounddevice if there is a device, else a program on PATH."""

    def __init__(self, name: str, sounddevice: Any = None):
        self.name, self.sounddevice = name, sounddevice

    def start(self, sample_rate: int) -> Playback:
        """Begin to play the sound of an answer at a sample rate (Hz)."""
        if self.sounddevice is not None:
            return DevicePlayback(self.sounddevice, sample_rate)
        path = shutil.which(self.name) or self.name
        if self.name == FILE_PROGRAM:
            return FilePlayback(path, sample_rate)
        return ProgramPlayback([path, *PROGRAMS[self.name]], sample_rate)


def find_player(play: str = AUTO) -> Player | None:
    """Return the player to play answers with, or None if there is none or none is wanted.

    Args:
        play: one of `PLAY`.

    Raises:
        ValueError: `play` is none of them.
    """
    if play not in PLAY:
        raise ValueError(f"--play {play}: unknown (choices: {', '.join(PLAY)})")
    if play == NEVER:
        return None
    if (sounddevice := _sounddevice()) is not None:
        return Player("sounddevice", sounddevice)
    return next((Player(name) for name in (*PROGRAMS, FILE_PROGRAM) if shutil.which(name)), None)


def _sounddevice() -> Any:
    """Return the package sounddevice if it is installed and there is a device for output, else None."""
    if importlib.util.find_spec("sounddevice") is None:
        return None
    try:
        sounddevice = importlib.import_module("sounddevice")
        sounddevice.query_devices(kind="output")
    except Exception:  # without PortAudio it cannot be imported, and without a device it raises an error of its own
        return None
    return sounddevice


def wav_header(sample_rate: int) -> bytes:
    """Return the header of a WAV file of mono samples of 16 bits whose length is not known yet."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    unknown = 0xFFFFFFFF
    return struct.pack("<4sI4s", b"RIFF", unknown, b"WAVE") + form + struct.pack("<4sI", b"data", unknown)


def as_pcm(wav: Tensor) -> bytes:
    """Convert samples [n] in -1..1 to 16 bits each, in the byte order of little-endian machines."""
    return (wav.clamp(-1, 1) * 32767).round().to("cpu").numpy().astype("<i2").tobytes()
