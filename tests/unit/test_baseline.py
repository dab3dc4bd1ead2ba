"""The published method in plain code gives the tokens that omnikit's loop gives."""

from __future__ import annotations

import pytest
import torch

import omnikit
from benchmarks.baseline import CHUNK, Baseline
from omnikit.generate import Decoding, Question, generate
from omnikit.strategies import BATCH_PARALLEL
from omnikit.tasks import TASKS


def build(**options):
    torch.manual_seed(3)
    return omnikit.build(
        size="tiny", encoder="whisper_small", adapter="gated_mlp", llm="qwen2_0.5b", codec="snac_24khz", **options
    )


@pytest.fixture(scope="module")
def model():
    return build()


def test_same_tokens_as_the_loop(model):
    features = torch.randn(21, model.encoder.dim, generator=torch.Generator().manual_seed(0))
    theirs = torch.stack(list(Baseline(model, slots=64).steps(features, 15)))
    steps = generate(
        model,
        TASKS["A1A2"],
        [Question(features=features)],
        decoding=Decoding(constrain=False, max_steps=15),
        strategy=BATCH_PARALLEL,
    )
    assert theirs.tolist() == [step.tokens[0].tolist() for step in steps]
    assert len(set(map(tuple, theirs.tolist()))) > 10  # the network does something


def test_first_sound_after_eleven_passes(model):
    baseline, passes = Baseline(model, slots=64), 0

    def counted():
        nonlocal passes
        for tokens in baseline.steps(torch.randn(5, model.encoder.dim), 40):
            passes += 1
            yield tokens

    wav = next(baseline.sounds(counted()))
    assert passes == 11
    assert wav.shape == (CHUNK * model.codec.frame_samples,)


def test_another_architecture_is_refused():
    with pytest.raises(ValueError, match="Qwen2 backbone without TTS adapter"):
        Baseline(build(tts_blocks=1))
