"""Tests of speech synthesis with espeak-ng: voice, speed, pitch and phonemes follow the arguments."""

from __future__ import annotations

import numpy as np
import pytest

from omnikit.prepare.espeak import MARGIN_SECONDS, phonemes, synthesize, trim


def test_a_sentence_has_sound_and_its_margins():
    wav, rate = synthesize("good morning my friend", "en-us", sample_rate=16000)
    margin = int(0.8 * MARGIN_SECONDS * rate)
    assert rate == 16000 and wav.dtype == np.float32 and 0.8 < len(wav) / rate < 2.5
    assert np.abs(wav).max() > 0.2 and np.abs(wav[:margin]).max() < 0.02 and np.abs(wav[-margin:]).max() < 0.02


def test_own_sample_rate_is_the_same_sound():
    (own, rate), (low, _) = synthesize("seven"), synthesize("seven", sample_rate=16000)
    assert rate != 16000 and abs(len(own) / rate - len(low) / 16000) < 0.001


def test_speed_pitch_and_gap_are_heard():
    text = "the old brown pig"
    length = {s: len(synthesize(text, speed=s)[0]) for s in (120, 160, 220)}
    assert length[120] > 1.2 * length[160] > 1.2 * length[220]
    assert len(synthesize(text, word_gap=10)[0]) > 1.1 * length[160]
    assert fundamental("are", 20) < 0.8 * fundamental("are", 80)


def fundamental(text: str, pitch: int) -> float:
    """Return the fundamental frequency in Hz of synthesized speech, in its loudest tenth of a second.

    It is the maximum of the autocorrelation in 60..350 Hz.
    """
    wav, rate = synthesize(text, pitch=pitch)
    size = rate // 10
    start = np.convolve(wav**2, np.ones(size), "valid").argmax()
    part = wav[start : start + size]
    correlation = np.correlate(part, part, "full")[size - 1 :]
    low, high = rate // 350, rate // 60
    return rate / (low + int(correlation[low:high].argmax()))


def test_voices_differ():
    assert not np.array_equal(synthesize("ten", "en-us+m3")[0], synthesize("ten", "en-us+f3")[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"voice": "xx-yy"}, "unknown language 'xx-yy'"),
        ({"voice": "en-us+m33"}, "unknown variant 'm33'.*m3"),
        ({"speed": 20}, "speed 20"),
        ({"pitch": 120}, "pitch 120"),
        ({"text": " "}, "generates no speech"),
    ],
)
def test_refuses_what_it_cannot_say(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        synthesize(**{"text": "one"} | arguments)


def test_phonemes_are_sounds_without_marks():
    assert phonemes("two plus two") == [*phonemes("two"), *phonemes("plus"), *phonemes("two")]
    assert phonemes("hello") == ["h", "@", "l", "oU"]
    sounds = phonemes("what is the capital of france")
    assert len(sounds) > 15 and not any(set("', _") & set(sound) for sound in sounds)


def test_trim_keeps_exactly_the_margin():
    wav = np.concatenate([np.zeros(5000), np.ones(100), np.zeros(10)]).astype(np.float32)
    trimmed = trim(wav, 1000)
    assert len(trimmed) == 100 + 2 * 50 and trimmed[50:150].all() and not trimmed[:50].any()
    assert not len(trim(np.zeros(10, np.float32), 1000))
