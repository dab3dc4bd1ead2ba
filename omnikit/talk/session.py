"""The session of `omnikit talk`: lines are read, answered, played and stored until the end of the input."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch

from omnikit.audio.io import save_audio
from omnikit.errors import one_line
from omnikit.files import check_writable, make_folder
from omnikit.generate import END
from omnikit.talk.players import Playback, Player

if TYPE_CHECKING:
    from omnikit.conversation import Conversation
    from omnikit.generate.request import Chunks

PROMPT = "> "
HELP = """\
a line is a written question, the path of a sound file a spoken one
/file PATH      ask the question in a sound file
/crop SECONDS   forget what the last answer said after SECONDS
/reset          begin a new conversation
/help           show this list
/quit           end; Ctrl-C interrupts an answer, twice ends"""
COMMANDS = ("/file", "/crop", "/reset", "/help", "/quit")
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".m4a")
"""Endings by which a line of one word is the name of a sound file, even if there is no such file."""


class Session:
    """A conversation in the terminal.

    Args:
        talk: conversation that answers.
        player: player of the answers; None = they are not played.
        save_folder: folder that the speech of each answer is written to, `turn-01.wav` and so on; None = nowhere.

    Raises:
        ValueError: the folder cannot be written to.
    """

    def __init__(self, talk: Conversation, *, player: Player | None = None, save_folder: str | Path | None = None):
        self.talk, self.player = talk, player
        self.folder = None if save_folder is None else Path(save_folder)
        self.answers = 0
        self.interrupted = False
        """Whether Ctrl-C was pressed since the last line was read from a terminal, or at all in a pipe."""
        if self.folder is not None:
            make_folder(self.folder)
            check_writable(self._file(1))

    def run(self, source: TextIO) -> None:
        """Answer the lines of a terminal or a pipe until its end, `/quit`, or Ctrl-C twice in a row."""
        if hasattr(source, "reconfigure"):
            source.reconfigure(errors="replace")
        if source.isatty():
            say(HELP)
        lines = read_lines(source)
        while True:
            try:
                if (line := next(lines, None)) is None:
                    return
                self.interrupted &= not source.isatty()
                if not self.answer(line):
                    return
            except KeyboardInterrupt:
                if self.interrupted or not source.isatty():
                    raise
                self.interrupted, lines = True, read_lines(source)
                say("\n(Ctrl-C again or /quit ends)")

    def answer(self, line: str) -> bool:
        """Answer one line; return whether the session goes on. What is wrong with the line is reported in one line."""
        line = line.strip()
        try:
            if line == "/quit":
                return False
            name, _, value = line.partition(" ")
            if name in COMMANDS or (line.startswith("/") and not names_file(line)):
                self._command(name, value.strip())
            elif line:
                self._ask(line)
        except BrokenPipeError:  # nobody reads the answers
            raise
        except (ValueError, OSError, RuntimeError) as error:
            say(f"error: {one_line(error)}")
        return True

    def _command(self, name: str, value: str) -> None:
        if name == "/help":
            say(HELP)
        elif name == "/reset":
            self.talk.reset()
        elif name == "/crop":
            self.talk.crop(seconds_of(value))
        elif name == "/file":
            self._show(self.talk.stream(unquoted(value)))
        else:
            raise ValueError(f"{name}: no such command (choices: {', '.join(COMMANDS)})")

    def _ask(self, line: str) -> None:
        path = unquoted(line)
        if names_file(path):
            self._show(self.talk.stream(path))
        else:
            self._show(self.talk.stream_written(line))

    def _show(self, chunks: Chunks) -> None:
        """Print the text of an answer while it is generated, play its sound, and store it; Ctrl-C interrupts it."""
        rate = self.talk.omni.sample_rate
        playback, wavs, end = self._start(rate), [], END
        try:
            for chunk in chunks:
                print(chunk.text, end="", flush=True)
                wavs.append(chunk.wav)
                if playback is not None:
                    playback.push(chunk.wav)
                end = chunk.end or end
            print(flush=True)
            if playback is not None:
                playback.finish()
        except KeyboardInterrupt:
            self._interrupt(chunks, playback)
        except BaseException:
            if playback is not None:
                playback.stop()
            raise
        if playback is not None and playback.failed:
            self._drop_player()
        if end != END:
            say(f"the answer was truncated: {end}")
        self._save(wavs, rate)

    def _start(self, rate: int) -> Playback | None:
        """Begin to play an answer; return None if nothing is played."""
        if self.player is None:
            return None
        try:
            return self.player.start(rate)
        except Exception:  # sounddevice raises errors of its own, for a sample rate that the device refuses, say
            self._drop_player()
            return None

    def _drop_player(self) -> None:
        say(f"{self.player.name}: cannot play here; answers are not played")
        self.player = None

    def _interrupt(self, chunks: Chunks, playback: Playback | None) -> None:
        """End an answer, and cut it to what was played of it if it was played."""
        again, self.interrupted = self.interrupted, True
        chunks.close()
        played = playback is not None and not playback.failed
        if played:
            seconds = playback.seconds
            playback.stop()
        if again:
            raise KeyboardInterrupt
        print(flush=True)
        if not played:
            say("(interrupted)")
            return
        with suppress(ValueError):  # the answer had not begun
            self.talk.crop(seconds)
        say(f"(interrupted after {seconds:.1f} s)")

    def _save(self, wavs: list[torch.Tensor], rate: int) -> None:
        self.answers += 1
        if self.folder is not None and wavs and any(len(wav) for wav in wavs):
            save_audio(self._file(self.answers), torch.cat(wavs), rate)

    def _file(self, number: int) -> Path:
        return self.folder / f"turn-{number:02d}.wav"


def read_lines(source: TextIO) -> Iterator[str]:
    """Yield the lines of a terminal, after a prompt each, or of a pipe."""
    if not source.isatty():
        yield from source
        return
    with suppress(ImportError):
        import readline  # noqa: F401 - lines can be edited once it is imported
    while True:
        try:
            if sys.stdout.isatty():
                yield input(PROMPT)
            else:  # `input` would write the prompt among the answers
                print(PROMPT, end="", file=sys.stderr, flush=True)
                yield input()
        except EOFError:
            say("")
            return


def names_file(path: str) -> bool:
    """Return whether a line is the path of a file, or looks like the name of a sound file that does not exist."""
    return os.path.isfile(path) or (path.lower().endswith(SUFFIXES) and " " not in path)


def seconds_of(value: str) -> float:
    """Convert the value of `/crop` to seconds.

    Raises:
        ValueError: it is no number.
    """
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"/crop {value}: wants a number of seconds") from None


def unquoted(path: str) -> str:
    """Remove the quotes that terminals put around a path, and expand `~`."""
    path = path.strip()
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
        path = path[1:-1]
    return os.path.expanduser(path)


def say(text: str) -> None:
    """Print a message to stderr, so that stdout holds answers alone."""
    print(text, file=sys.stderr, flush=True)
