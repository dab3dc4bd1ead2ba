"""Test that audio written while it is generated, in each format, holds the samples of the whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from omnikit.audio.reader import read
from omnikit.serve.realtime.actions import RATE
from omnikit.serve.rest.written_audio import FORMATS, check_format, encoded, open_writer

ALIKE = {"mp3": 0.99, "opus": 0.9}
"""Mapping from lossy formats to the minimum correlation with what was written; 1 for the others but rounding."""
LATEST = 0.1
"""Maximum delay in seconds of audio whose encoder begins with silence, MP3."""


def sound(rate: int, seconds: float = 0.5) -> np.ndarray:
    """Return a tone that rises from 200 Hz to 2 kHz."""
    time = np.arange(int(rate * seconds)) / rate
    return (0.4 * np.sin(2 * np.pi * (200 + 900 / seconds * time) * time)).astype(np.float32)


def streamed(name: str, samples: np.ndarray, rate: int, size: int) -> tuple[bytes, list[int]]:
    """Return the bytes that a writer returns for samples in chunks, and their number for each chunk."""
    writer = open_writer(name, rate)
    parts = [writer.push(samples[at : at + size]) for at in range(0, len(samples), size)]
    parts.append(writer.finish())
    return b"".join(parts), [len(part) for part in parts]


def decoded(data: bytes, name: str) -> np.ndarray:
    """Return the samples of a file at 24 kHz."""
    if name == "pcm":
        return np.frombuffer(data, "<i2") / np.float32(32768)
    read_by_omnikit = read(data, name)
    assert read_by_omnikit.rate == RATE
    assert read_by_omnikit.notes == ()
    return read_by_omnikit.mono


def delay(late: np.ndarray, wanted: np.ndarray) -> int:
    """Return the number of samples by which one sound comes later than another, where they agree best."""
    return int(np.correlate(late, wanted, "full").argmax()) - len(wanted) + 1


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two sounds over the length of the shorter one."""
    n = min(len(one), len(other))
    return float(np.corrcoef(one[:n], other[:n])[0, 1])


@pytest.mark.parametrize("rate", [16000, 24000])
@pytest.mark.parametrize("name", FORMATS)
def test_each_format_holds_the_sound_whole_and_streamed(name, rate):
    samples, wanted = sound(rate), sound(RATE)
    whole = decoded(encoded(samples, rate, name), name)
    assert abs(len(whole) - len(wanted)) <= 1
    alike = ALIKE.get(name, 0.999)
    assert agreement(whole, wanted) > alike
    data, _ = streamed(name, samples, rate, 1000)
    late = decoded(data, name)
    lag = delay(late, wanted)
    assert -1 <= lag <= (LATEST * RATE if name == "mp3" else 1)
    assert agreement(late[max(0, lag) :], wanted) > alike
    if name in ("pcm", "wav", "flac"):
        assert np.array_equal(late, whole)


@pytest.mark.parametrize("name", FORMATS)
def test_most_formats_are_sent_while_samples_arrive(name):
    sizes = streamed(name, sound(RATE, 3.0), RATE, RATE // 4)[1]
    sent = sum(sizes[:6]) / sum(sizes)  # half of the chunks
    assert sent > (0.25 if name == "opus" else 0.4)  # a page of Opus holds a second


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([8000, 16000, 22050, 24000]), st.integers(20, 3000))
def test_exact_formats_do_not_depend_on_the_division_into_chunks(rate, size):
    samples = sound(rate, 0.2)
    for name in ("pcm", "wav"):
        assert streamed(name, samples, rate, size)[0] == streamed(name, samples, rate, len(samples))[0]


def test_other_programs_read_a_wav_of_unknown_length():
    data, _ = streamed("wav", sound(RATE), RATE, 500)
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == RATE
    assert len(samples) == len(sound(RATE))
    assert data[4:8] == data[40:44] == b"\xff" * 4


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_without_speech_is_a_file_without_samples(name):
    data, _ = streamed(name, np.zeros(0, np.float32), 16000, 100)
    whole = encoded(np.zeros(0, np.float32), 16000, name)
    if name == "pcm":
        assert data == whole == b""
    elif name == "wav":
        for file in (data, whole):
            assert len(soundfile.read(io.BytesIO(file))[0]) == 0


def test_loud_samples_are_clipped():
    loud = np.array([2.0, -2.0] * 500, np.float32)
    for name in ("pcm", "wav", "flac"):
        back = decoded(encoded(loud, RATE, name), name)
        assert back.max() > 0.99
        assert back.min() < -0.99
        assert np.array_equal(np.sign(back), np.sign(loud))


def test_formats_that_cannot_be_written_are_refused_by_name():
    for name in ("aac", "../mp3", ""):
        with pytest.raises(ValueError, match=rf"^format '{name}': cannot be written \(choices: mp3, opus, flac"):
            check_format(name)
