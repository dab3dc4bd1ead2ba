"""Test the conversation in the terminal on the shipped system, and the players on stand-ins for their programs."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest
import soundfile
import torch

import omnikit
from omnikit.api import Omni
from omnikit.generate import Decoding
from omnikit.talk import players, session
from omnikit.talk.players import Playback, Player, find_player
from omnikit.talk.session import Session
from tests.unit.toy import toy_model

QUESTIONS = Path(__file__).parents[3] / "egs/mini/questions"


@pytest.fixture(scope="module")
def omni() -> Omni:
    return omnikit.load()


def test_lines_of_a_pipe_are_answered(omni, tmp_path):
    """Check the command in a process of its own; its answers are those of the API, and bad lines do not end it."""
    sums, capital = QUESTIONS / "sum.wav", QUESTIONS / "capital.wav"
    lines = [
        "what is two plus two", sums, "", "nowhere.wav", "/nowhere.wav", "/fly", "/crop now", "what is 42", "/crop 0.2",
        f"/file '{capital}'", "/reset", "/crop 1", "/help", "what is two plus two", "/quit", "ended",
    ]  # fmt: skip
    command = [sys.executable, "-m", "omnikit.cli", "talk", "--play", "never", "--save_folder", tmp_path / "new"]
    done = subprocess.run(command, input="\n".join(map(str, lines)).encode() + b"\n\xff", capture_output=True,
                          timeout=120)  # fmt: skip
    errors = done.stderr.decode().splitlines()
    assert done.returncode == 0, errors
    talk, found = omni.conversation(), []
    replies = [talk.say("what is two plus two"), talk.ask(sums)]
    talk.crop(0.2)
    replies.append(talk.ask(capital))
    talk.reset()
    replies.append(talk.say("what is two plus two"))
    assert done.stdout.decode().splitlines() == [reply.text for reply in replies]
    for number, reply in enumerate(replies, start=1):
        wav, rate = soundfile.read(tmp_path / "new" / f"turn-{number:02d}.wav")
        found.append(abs(torch.from_numpy(wav).float() - reply.wav).max())
        assert rate == reply.sample_rate
    assert max(found) < 1e-3
    assert len(list((tmp_path / "new").iterdir())) == 4
    words = [
        "nowhere.wav: no such file", "/nowhere.wav: no such file", "/fly: no such command (choices: /file",
        "/crop now: wants a number of seconds", "lacks '42'", "crop 1: the conversation has no answer",
    ]  # fmt: skip
    refused = [line for line in errors if line.startswith("error: ")]
    assert len(refused) == len(words)
    assert all(word in line for word, line in zip(words, refused, strict=True))
    assert errors[len(refused) :] == session.HELP.splitlines()


def test_bad_flags_are_refused(run, tmp_path):
    status, _, error = run("talk", "--play", "loud")
    assert (status, error) == (2, "error: --play loud: unknown (choices: auto, never)\n")
    (tmp_path / "file").write_text("")
    status, _, error = run("talk", "--play", "never", "--save_folder", tmp_path / "file")
    assert status == 2 and str(tmp_path / "file") in error and error.count("\n") == 1


# players


def program(folder: Path, name: str, lines: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{lines}\n")
    file.chmod(0o755)


def only(folder: Path, monkeypatch) -> None:
    """Let programs be found in one folder and where the shell is, and no package sounddevice."""
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    monkeypatch.setattr(players, "_sounddevice", lambda: None)
    which = players.shutil.which
    monkeypatch.setattr(players.shutil, "which", lambda name: which(name, path=str(folder)))


def talking(**options) -> Session:
    omni = Omni(toy_model(), decoding=Decoding(max_steps=40, min_steps=40))
    return Session(omni.conversation(), **options)


def test_a_player_is_looked_for(tmp_path, monkeypatch):
    only(tmp_path, monkeypatch)
    assert find_player() is None
    for name in ("afplay", "aplay", "ffplay"):
        program(tmp_path, name, "exit 0")
        assert find_player().name == name
        assert find_player("never") is None

    class Device:
        """A stand-in for sounddevice."""

    monkeypatch.setattr(players, "_sounddevice", Device)
    assert find_player().name == "sounddevice"


@pytest.mark.parametrize("name", ["ffplay", "aplay", "afplay"])
def test_a_program_gets_the_whole_sound(name, tmp_path, monkeypatch):
    only(tmp_path, monkeypatch)
    source = '"$1"' if name == "afplay" else "-"
    program(tmp_path, name, f"cat {source} > {tmp_path}/heard.wav")
    talk = talking(player=find_player())
    assert talk.answer("what is red")
    [turn] = talk.talk._history.turns
    wav = talk.talk.omni.model.codec.decode(turn.codes[None])[0]
    heard = (tmp_path / "heard.wav").read_bytes()
    with soundfile.SoundFile(io.BytesIO(heard)) as sound:
        assert (sound.samplerate, sound.channels) == (16000, 1)
    samples = torch.frombuffer(bytearray(heard[44:]), dtype=torch.int16)
    assert len(samples) == len(wav) > 100
    assert (samples / 32767 - wav).abs().max() < 1e-3


def test_a_program_that_cannot_play_is_not_asked_again(tmp_path, monkeypatch, capsys):
    only(tmp_path, monkeypatch)
    program(tmp_path, "ffplay", "exit 1")
    talk = talking(player=find_player())
    talk.answer("what is red")
    talk.answer("what is blue")
    err = capsys.readouterr().err
    assert err.count("ffplay: cannot play here; answers are not played") == 1
    assert len(talk.talk.turns) == 2


class Interrupted(Playback):
    """A playback during which Ctrl-C is pressed after two frames have been played."""

    stopped = False

    @property
    def seconds(self) -> float:
        return 2.5 * 3 / self.sample_rate

    def _push(self, wav) -> None:
        pass

    def finish(self) -> None:
        raise KeyboardInterrupt

    def stop(self) -> None:
        Interrupted.stopped = True


def test_an_interrupted_answer_is_cut_to_what_was_played(monkeypatch, capsys):
    player = Player("ffplay")
    monkeypatch.setattr(player, "start", Interrupted)
    talk = talking(player=player)
    assert talk.answer("what is red")
    assert Interrupted.stopped
    assert talk.talk._history.turns[0].codes.shape[1] == 2
    assert "(interrupted after 0.0 s)" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):  # without another line in between
        talk.answer("what is red")


def test_ctrl_c_before_an_answer_leaves_the_one_before_whole(tmp_path, monkeypatch):
    only(tmp_path, monkeypatch)
    program(tmp_path, "ffplay", "cat > /dev/null")
    talk = talking(player=find_player())
    talk.answer("what is red")
    turns = talk.talk.turns
    cancelled = Event()
    cancelled.set()

    stream = talk.talk.stream_written

    def never_begun(text):
        chunks = stream(text, cancel=cancelled)
        monkeypatch.setattr(type(chunks), "__next__", interrupt)
        return chunks

    def interrupt(chunks):
        raise KeyboardInterrupt

    monkeypatch.setattr(talk.talk, "stream_written", never_begun)
    assert talk.answer("what is blue")
    assert talk.talk.turns == turns


def test_an_interruption_does_not_end_playing(tmp_path, monkeypatch, capsys):
    only(tmp_path, monkeypatch)
    program(tmp_path, "ffplay", 'exec sh -c "exec sleep 60"')
    talk = talking(player=find_player())
    begun = []

    def interrupted(playback):
        begun.append(playback)
        raise KeyboardInterrupt

    monkeypatch.setattr(players.ProgramPlayback, "finish", interrupted)
    for line in ("what is red", "what is blue"):
        talk.interrupted = False
        talk.answer(line)
        begun[-1]._thread.join(5)
        assert not begun[-1].failed
    assert len(begun) == 2
    assert "cannot play" not in capsys.readouterr().err


class Stream:
    """A stand-in for a stream of sounddevice."""

    refused = False

    def __init__(self, samplerate, **options):
        if self.refused:
            raise LookupError("Invalid sample rate")
        self.calls = []

    def __getattr__(self, name):
        return lambda *data: (self.calls.append((name, *data)), time.sleep(0.01 if name == "write" else 0))


class Sounddevice:
    RawOutputStream = Stream


def test_a_sound_device_plays_and_stops():
    player = Player("sounddevice", Sounddevice)
    playback, wav = player.start(1000), torch.linspace(-1, 1, 240)
    playback.push(wav)
    playback.finish()
    calls = playback.stream.calls
    assert b"".join(data for name, *rest in calls if name == "write" for data in rest) == players.as_pcm(wav)
    assert [name for name, *_ in calls] == ["start", *["write"] * 5, "stop", "close"]
    playback = player.start(1000)
    playback.push(torch.zeros(100_000))
    playback.stop()
    names = [name for name, *_ in playback.stream.calls]
    assert names[-2:] == ["abort", "close"] and len(names) < 100
    assert not playback.failed


def test_a_device_that_refuses_the_sample_rate_is_not_asked_again(monkeypatch, capsys):
    monkeypatch.setattr(Stream, "refused", True)
    talk = talking(player=Player("sounddevice", Sounddevice))
    assert talk.answer("what is red") and talk.answer("what is blue")
    assert capsys.readouterr().err.count("sounddevice: cannot play here; answers are not played") == 1
    assert len(talk.talk.turns) == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_ctrl_c_twice_ends_a_terminal(monkeypatch, capsys):
    typed = iter(["what is red", KeyboardInterrupt, "what is blue", KeyboardInterrupt, KeyboardInterrupt, "never read"])

    def read(prompt=""):
        assert not prompt  # stdout is no terminal
        if (line := next(typed)) is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr("builtins.input", read)
    talk = talking()
    with pytest.raises(KeyboardInterrupt):
        talk.run(Terminal())
    assert len(talk.talk.turns) == 2
    assert next(typed) == "never read"
    out, err = capsys.readouterr()
    assert err.count("(Ctrl-C again or /quit ends)") == 2
    assert session.PROMPT in err and session.PROMPT not in out


def test_what_was_played_is_told_by_the_clock(monkeypatch):
    playback = Interrupted(100)
    clock = iter([10.0, 10.5, 13.0])
    monkeypatch.setattr(players, "monotonic", lambda: next(clock))
    seconds = Playback.seconds.fget
    assert seconds(playback) == 0
    playback.push(torch.zeros(0))
    playback.push(torch.zeros(200))
    assert seconds(playback) == 0.5
    assert seconds(playback) == 2.0


def test_a_killed_program_stops_at_once(tmp_path, monkeypatch):
    only(tmp_path, monkeypatch)
    program(tmp_path, "ffplay", "exec sleep 60")
    playback = find_player().start(16000)
    playback.push(torch.zeros(10**6))
    began = time.monotonic()
    playback.stop()
    assert time.monotonic() - began < 5
    assert playback.process.returncode
