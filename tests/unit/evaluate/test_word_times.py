"""Tests of the times of words, and of stretches of speech."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omnikit.evaluate import speech_segments
from omnikit.evaluate.word_times import Stretch, Word, estimated_words, played_words, words_after
from omnikit.serve.realtime.voice_activity import RATE, WINDOW


def test_the_audible_part_is_divided_by_the_characters_of_the_words():
    wav = np.zeros(1000, np.float32)
    wav[100:900] = 0.5
    found = estimated_words("a bcd  efgh", wav, 100)
    assert [(word.text, word.begin, word.end) for word in found] == [
        ("a", 1.0, pytest.approx(2.0)),
        ("bcd", pytest.approx(2.0), pytest.approx(5.0)),
        ("efgh", pytest.approx(5.0), pytest.approx(9.0)),
    ]
    assert estimated_words("a", np.zeros(100), 100) == [] == estimated_words(" ", wav, 100)


def test_words_are_played_where_their_sound_is():
    words = [Word("a", 0.0, 1.0), Word("b", 1.0, 2.0), Word("c", 2.0, 3.0)]
    # 1.5 s of the answer from second 10 on, then a gap, then until 2.4 s
    parts = [Stretch(0.0, 10.0, 1.5), Stretch(1.5, 12.0, 0.9)]
    assert played_words(words, parts) == [Word("a", 10.0, 11.0), Word("b", 11.0, 12.5)]
    assert played_words(words, []) == []


def test_words_after_a_second_are_those_of_which_half_is_after_it():
    words = [Word("a", 0.0, 1.0), Word("b", 1.0, 2.0), Word("c", 2.0, 3.0)]
    assert words_after(words, 0.0) == words
    assert words_after(words, 1.4) == [Word("b", 1.4, 2.0), words[2]]
    assert words_after(words, 1.6) == [words[2]]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_stretches_of_speech_are_those_of_silero_vad():
    threads = torch.get_num_threads()
    silero = pytest.importorskip("silero_vad.utils_vad")
    torch.set_num_threads(threads)
    generator = np.random.default_rng(0)
    for windows in (1, 3, 40, 200):
        for smooth in (1, 4, 9):
            values = np.convolve(generator.uniform(-0.3, 1.3, windows + smooth - 1), np.ones(smooth) / smooth, "valid")
            speech = values.clip(0, 1).tolist()
            length = windows * WINDOW - int(generator.integers(WINDOW))
            theirs = silero.get_speech_timestamps_from_probs(speech, audio_length_samples=length)
            ours = speech_segments._padded(speech_segments._stretches(speech, length), length)
            assert ours == [(each["start"], each["end"]) for each in theirs]


def test_speech_is_found_where_it_is():
    tone = np.zeros(RATE, np.float32)
    assert speech_segments.speech_segments(tone) == []
