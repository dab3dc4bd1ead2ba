"""Test that the recogniser that judges answers transcribes synthetic speech right, and silence as empty text."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from omnikit.evaluate.asr_judges import PocketsphinxJudge, grammar_words

MINI = Path(__file__).resolve().parents[3] / "egs" / "mini"


def mini_module(name: str):
    """Import a module of the folder `egs/mini`, which is not a Python package."""
    sys.path.insert(0, str(MINI))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(MINI))


@pytest.fixture(scope="module")
def judge() -> PocketsphinxJudge:
    return PocketsphinxJudge(mini_module("grammar").grammar())


@pytest.mark.parametrize(
    "text, sample_rate",
    [
        ("what is the capital of france", 16000),
        ("two plus three is five", 24000),
        ("the small banana is yellow", 16000),
        ("you asked which day follows sunday", 16000),
        ("no your name is oscar", 24000),
        ("the opposite of hot is cold", 8000),
    ],
)
def test_clear_speech_is_understood(judge, text, sample_rate):
    from omnikit.prepare.espeak import synthesize

    wav, rate = synthesize(text, "en-us", sample_rate=sample_rate)
    assert judge.transcribe(wav, rate) == text


def test_silence_and_noise_are_not_speech(judge):
    rng = np.random.default_rng(1)
    assert judge.transcribe(np.zeros(16000), 16000) == ""
    assert judge.transcribe(1e-3 * rng.standard_normal(16000), 16000) == ""
    from omnikit.prepare.espeak import synthesize

    text = "seven plus eight is fifteen"
    wav, _ = synthesize(text, "en-us", sample_rate=16000)
    hypothesis = judge.transcribe(0.3 * rng.standard_normal(len(wav)), 16000)
    assert sum(a == b for a, b in zip(hypothesis.split(), text.split(), strict=False)) <= 2


def test_one_utterance_leaves_nothing_behind(judge):
    from omnikit.prepare.espeak import synthesize

    wav, rate = synthesize("the grass is green", "en-us")
    first = judge.transcribe(wav, rate)
    judge.transcribe(0.5 * np.random.default_rng(0).standard_normal(8000), 16000)
    assert judge.transcribe(wav, rate) == first


def test_grammar_covers_the_world_and_no_more():
    grammar, world, followups = mini_module("grammar"), mini_module("world"), mini_module("followups")
    assert grammar_words(grammar.grammar()) == set(followups.vocabulary())
    for name in ("number", "city", "country"):
        assert f"<{name}> = {' | '.join(world.SLOTS[name])};" in grammar.grammar()


def test_questions_get_their_slots_back():
    grammar = mini_module("grammar")
    assert grammar.generalised("paris is the capital of france") == "{city} is the capital of {country}"
    assert grammar.generalised("two plus three is five") == "{number} plus {number} is {number}"


def test_words_of_a_grammar():
    text = "#JSGF V1.0; grammar g; <a> = one | two; public <s> = [the] (<a> three)+ | <a>;"
    assert grammar_words(text) == {"one", "two", "the", "three"}


@pytest.mark.parametrize(
    "grammar, message",
    [
        ("#JSGF V1.0; grammar g; public <s> = blorbifax is red;", "no pronunciation is known of blorbifax"),
        ("#JSGF V1.0; grammar g; public <s> = red is (blue;", "grammar"),
    ],
)
def test_a_grammar_that_will_not_do(grammar, message):
    with pytest.raises(ValueError, match=message):
        PocketsphinxJudge(grammar)
