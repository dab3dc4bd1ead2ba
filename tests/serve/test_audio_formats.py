"""Tests of the audio formats of Realtime sessions."""

from __future__ import annotations

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from omnikit.serve.audio_formats import FORMATS, InputAudio, OutputAudio
from omnikit.serve.realtime.actions import RATE
from omnikit.serve.resample import Resampler

LINEAR = np.arange(-32768, 32768)


def mu_law_level(code: int) -> int:
    """Return the 16 bit sample of a mu-law byte by the formula of ITU-T G.711."""
    bits = ~code & 0xFF
    size = ((2 * (bits & 15) + 33 << (bits >> 4 & 7)) - 33) * 4
    return -size if bits & 0x80 else size


def a_law_level(code: int) -> int:
    """Return the 16 bit sample of an A-law byte by the formula of ITU-T G.711."""
    bits = code ^ 0x55
    segment, place = bits >> 4 & 7, 2 * (bits & 15) + 1
    size = (place if segment == 0 else place + 32 << segment - 1) * 8
    return size if bits & 0x80 else -size


def mu_law_byte(sample: int) -> int:
    """Return the mu-law byte of a 16 bit sample: four bits below the highest one of its size plus 33."""
    size = min(abs(sample) // 4, 8158) + 33
    segment = size.bit_length() - 6
    return ~((0x80 if sample < 0 else 0) | segment << 4 | size >> segment + 1 & 15) & 0xFF


def a_law_byte(sample: int) -> int:
    """Return the A-law byte of a 16 bit sample: four bits below the highest one of its size, even bits inverted."""
    size = min(abs(sample) // 16, 2047)
    segment = max(0, size.bit_length() - 4)
    return ((0x80 if sample >= 0 else 0) | segment << 4 | size >> max(segment - 1, 0) & 15) ^ 0x55


LEVELS = {"audio/pcmu": mu_law_level, "audio/pcma": a_law_level}


def table(law: str) -> np.ndarray:
    """Return the 16 bit samples [256] of all bytes of a law."""
    return np.array([LEVELS[law](code) for code in range(256)])


def sounds(rate: int, seconds: float = 0.5) -> np.ndarray:
    """Return noise and tones below the telephone band's end [N]."""
    rng, time = np.random.default_rng(1), np.arange(int(rate * seconds)) / rate
    tones = sum(np.sin(2 * np.pi * f * time + f) for f in (150, 440, 1100, 2500, 3300))
    return (0.1 * tones + 0.001 * rng.standard_normal(len(time))).astype(np.float32)


def cut(data, sizes: list[int]):
    """Divide samples or bytes into chunks of these sizes, again and again."""
    at, turn = 0, 0
    while at < len(data):
        size = max(1, sizes[turn % len(sizes)])
        yield data[at : at + size]
        at, turn = at + size, turn + 1


def without_resampling(coder: InputAudio | OutputAudio) -> InputAudio | OutputAudio:
    """Return the decoder or encoder with its resampler replaced by one that changes nothing."""
    coder.resampler = Resampler(8000, 8000)
    return coder


@pytest.mark.parametrize("law", LEVELS)
def test_all_bytes_of_g711_are_decoded_as_the_standard_says(law):
    samples = without_resampling(InputAudio(law)).push(bytes(range(256)))
    assert np.array_equal(samples * 32768, table(law))


@pytest.mark.parametrize("law", LEVELS)
def test_all_samples_become_the_byte_of_g711_whose_interval_they_lie_in(law):
    data = without_resampling(OutputAudio(law, 8000)).push(LINEAR / np.float32(32768))
    expected = [(mu_law_byte if law == "audio/pcmu" else a_law_byte)(int(sample)) for sample in LINEAR]
    assert np.array_equal(np.frombuffer(data, np.uint8), expected)


@pytest.mark.parametrize("law", LEVELS)
def test_bytes_of_g711_survive_decoding_and_encoding(law):
    samples = without_resampling(InputAudio(law)).push(bytes(range(256)))
    again = np.frombuffer(without_resampling(OutputAudio(law, 8000)).push(samples), np.uint8)
    assert np.array_equal(table(law)[again], table(law))  # mu-law has two zeros


def test_pcm_survives_decoding_and_encoding_bit_by_bit():
    data = LINEAR.astype("<i2").tobytes()
    assert OutputAudio("audio/pcm", RATE).push(InputAudio("audio/pcm").push(data)) == data


def test_pcm_is_little_endian_and_rounded_to_the_nearest():
    values = np.array([1.4, 1.6, -1.4, -1.6, 0.5, 256.0]) / 32768
    assert OutputAudio("audio/pcm", RATE).push(values) == bytes([1, 0, 2, 0, 255, 255, 254, 255, 0, 0, 0, 1])


def test_loud_samples_are_clipped_and_what_is_no_number_is_silent():
    loud = np.array([1.0, 2.0, np.inf, -1.0, -2.0, -np.inf, np.nan], np.float32)
    sent = np.frombuffer(OutputAudio("audio/pcm", RATE).push(loud), "<i2")
    assert sent.tolist() == [32767] * 3 + [-32768] * 3 + [0]


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_what_is_no_number_does_not_spread_by_resampling(rate):
    output = OutputAudio("audio/pcm", rate)
    output.push(np.full(rate // 10, np.nan, np.float32))
    sent = np.frombuffer(output.push(sounds(rate)) + output.finish(), "<i2")
    assert np.abs(sent).max() > 1000


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(FORMATS), st.lists(st.integers(1, 2000), min_size=1, max_size=8))
def test_input_does_not_depend_on_the_division_into_messages(name, sizes):
    data = np.random.default_rng(0).integers(0, 256, 6001).astype(np.uint8).tobytes()
    whole, parts = InputAudio(name), InputAudio(name)
    expected = whole.push(data)
    assert np.array_equal(np.concatenate([parts.push(part) for part in cut(data, sizes)]), expected)
    assert np.isfinite(expected).all()
    assert expected.dtype == np.float32


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.sampled_from([8000, 16000, 22050, 24000]),
    st.lists(st.integers(1, 3000), min_size=1, max_size=8),
)
def test_output_does_not_depend_on_the_division_into_chunks(name, rate, sizes):
    samples = sounds(rate, 0.2)
    whole, parts = OutputAudio(name, rate), OutputAudio(name, rate)
    expected = whole.push(samples) + whole.finish()
    assert b"".join(parts.push(part) for part in cut(samples, sizes)) + parts.finish() == expected


@pytest.mark.parametrize(
    ("rate_in", "rate_out"),
    [(8000, 24000), (24000, 8000), (24000, 16000), (16000, 24000), (44100, 24000), (22050, 8000)],
)
def test_resampling_agrees_with_soxr(rate_in, rate_out):
    samples = sounds(rate_in)
    resampler = Resampler(rate_in, rate_out)
    ours = np.concatenate([*(resampler.push(part) for part in cut(samples, [160, 1, 999])), resampler.finish()])
    theirs = soxr.resample(samples, rate_in, rate_out, quality="VHQ")
    assert 0 <= len(ours) - len(theirs) <= 1
    inner = slice(rate_out // 20, len(theirs) - rate_out // 20)  # the ends have frequencies beyond the band
    error = np.sqrt(np.mean((ours[: len(theirs)] - theirs)[inner] ** 2))
    assert error < 1e-3 * np.sqrt(np.mean(theirs**2))


def test_tones_beyond_the_band_are_removed():
    time = np.arange(RATE) / RATE
    for frequency in (4100, 5000, 11000):
        kept = Resampler(RATE, 8000).push(np.sin(2 * np.pi * frequency * time))
        assert np.abs(kept[100:]).max() < 2e-3


@pytest.mark.parametrize(("rate_in", "rate_out"), [(8000, 24000), (24000, 8000), (24000, 16000)])
def test_the_delay_of_resampling_is_at_most_five_milliseconds(rate_in, rate_out):
    given = len(Resampler(rate_in, rate_out).push(np.zeros(rate_in)))
    assert (rate_out - given) / rate_out < 0.005


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_keeps_its_time_and_its_length(name):
    samples = np.zeros(12000, np.float32)
    samples[6000] = 0.9  # a click
    output = OutputAudio(name, RATE)
    data = output.push(samples[:5000]) + output.push(samples[5000:]) + output.finish()
    back = InputAudio(name)
    heard = back.push(data)
    assert len(data) == 12000 * output.rate // RATE * (2 if name == "audio/pcm" else 1)
    assert np.abs(heard).argmax() == 6000
    assert output.finish() == b""


@pytest.mark.parametrize("name", FORMATS)
def test_a_finished_encoder_begins_anew(name):
    output, fresh = OutputAudio(name, 16000), OutputAudio(name, 16000)
    output.push(sounds(16000))
    output.finish()
    assert output.push(sounds(16000)) + output.finish() == fresh.push(sounds(16000)) + fresh.finish()


def test_half_a_sample_waits_for_its_other_half():
    decoder = InputAudio("audio/pcm")
    assert len(decoder.push(b"\x00")) == 0
    assert decoder.push(b"\x40\x00").tolist() == [0.5]
    assert decoder.push(b"\xc0").tolist() == [-0.5]


def test_nothing_becomes_nothing():
    for name in FORMATS:
        assert len(InputAudio(name).push(b"")) == 0
        assert OutputAudio(name, RATE).push(np.zeros(0, np.float32)) == b""


def test_an_unknown_format_is_refused_with_the_choices():
    for make in (lambda: InputAudio("audio/mp3"), lambda: OutputAudio("audio/mp3", RATE)):
        with pytest.raises(ValueError, match=r"'audio/mp3': no such format \(choices: audio/pcm, audio/pcmu"):
            make()
