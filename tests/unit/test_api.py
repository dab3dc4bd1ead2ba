"""Test the Python API of omnikit on an untrained tiny system."""

from __future__ import annotations

import pytest
import soundfile
import torch

import omnikit
from omnikit.api import Omni
from omnikit.generate import Decoding
from omnikit.strategies import BATCH_PARALLEL
from omnikit.tasks import TASKS
from tests.unit.toy import toy_model

PATTERNS = [
    ("delayed", {}), ("delayed", {"delays": [2, 0, 1], "text_lead": 1}), ("parallel", {}),
    ("parallel", {"text_lead": 4}), ("flattened", {}), ("flattened", {"text_lead": 0}), ("flattened", {"text_lead": 4}),
]  # fmt: skip


@pytest.fixture
def question(tmp_path):
    path = tmp_path / "question.wav"
    soundfile.write(path, torch.rand(16000).numpy() - 0.5, 16000)
    return path


def system(pattern="delayed", strategy=None, **options) -> Omni:
    return Omni(toy_model(pattern, **options), decoding=Decoding(max_steps=20), strategy=strategy)


@pytest.mark.parametrize(("pattern", "options"), PATTERNS)
def test_a_stream_joined_is_the_answer(pattern, options, question):
    omni = system(pattern, **options)
    chunks = list(omni.stream(question))
    reply = omni.ask(question)
    assert "".join(c.text for c in chunks) == reply.text
    assert torch.equal(torch.cat([c.wav for c in chunks]), reply.wav)
    codes = omni.decoder.answers(TASKS["A1A2"], [omni.spoken_question(question)])[0].codes
    assert torch.equal(omni.model.codec.decode(codes[None])[0], reply.wav)
    assert reply.sample_rate == omni.sample_rate
    assert len(reply.wav) % omni.model.codec.frame_samples == 0
    assert len(reply.wav) > 0


def test_text_and_sound_grow_together(question):
    with_sound = [i for i, chunk in enumerate(system().stream(question)) if len(chunk.wav)]
    assert with_sound[0] < 6
    assert len(with_sound) > 3


def test_low_latency_begins_with_the_first_frame_and_grows(question):
    omni = system()
    exact, chunks = (list(omni.stream(question, mode=mode)) for mode in ("exact", "low_latency"))
    first_sound = [next(i for i, chunk in enumerate(each) if len(chunk.wav)) for each in (exact, chunks)]
    assert first_sound[0] == first_sound[1]
    frames = [len(chunk.wav) // omni.model.codec.frame_samples for chunk in chunks if len(chunk.wav)]
    assert frames[:4] == [1, 2, 4, 8] and max(frames) == 8
    assert torch.equal(torch.cat([c.wav for c in chunks]), omni.ask(question).wav)
    with pytest.raises(ValueError, match=r"mode 'fast': no such mode of streaming \(choices: exact, low_latency\)"):
        omni.stream(question, mode="fast")


def test_every_verb_answers(question):
    omni = system()
    assert isinstance(omni.transcribe(question), str)
    assert isinstance(omni.chat("what is red"), str)
    assert len(omni.speak("two is red").wav)
    assert omni.speak("two is red").text == "two is red"
    pieces = torch.cat([chunk.wav for chunk in omni.stream_speech("two is red")])
    assert torch.equal(pieces, omni.speak("two is red").wav)
    assert len(omni.answer("what is red").wav)


def test_batch_parallel_answers(question):
    assert len(system(strategy=BATCH_PARALLEL).ask(question).wav)


def test_bad_text_is_named():
    with pytest.raises(ValueError, match="empty"):
        system().chat("  ")
    with pytest.raises(ValueError, match="lacks '42'"):
        system().chat("what is 42")


def test_a_recording_that_the_encoder_refuses_is_named(tmp_path, tiny):
    path = tmp_path / "short.wav"
    soundfile.write(path, torch.rand(100).numpy(), 16000)
    with pytest.raises(ValueError, match=r"short\.wav: a recording of 100 samples"):
        Omni(tiny()).spoken_question(path)


def test_answers_in_bf16():
    omni = omnikit.load(dtype="bfloat16")
    assert omni.model.dtype == torch.bfloat16
    assert omni.chat("what is two plus two") == omnikit.load().chat("what is two plus two")
    with pytest.raises(ValueError, match=r"dtype int8: unknown .*float32, bfloat16, float16"):
        omnikit.load(dtype="int8")
    with pytest.raises(ValueError, match="dtype bfloat16: is for auto, torch, static, compiled; openvino"):
        omnikit.load(dtype="bfloat16", engine="openvino")
