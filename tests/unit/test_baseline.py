"""Test that a plain implementation of the published generation method chooses the same tokens as omnikit."""

from __future__ import annotations

import pytest
import torch

import omnikit
from benchmarks import inference
from benchmarks.baseline import CHUNK, Baseline
from omnikit.bench import measure as bench
from omnikit.bench.table import ROWS
from omnikit.generate import Decoder, Decoding, Question
from omnikit.strategies import BATCH_PARALLEL
from tests.unit.scripted import emitted


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
    decoder = Decoder(model, decoding=Decoding(constrain=False, max_steps=15), strategy=BATCH_PARALLEL)
    assert theirs.T.tolist() == emitted(decoder, "A1A2", [Question(features=features)])[0]
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


def test_it_is_measured_as_omnikit_is():
    plan = bench.BenchSizes(seconds=0.2, context=40, steps=3, frames=CHUNK, answers=2, repeats=1, gib=0.001)
    figures = inference.measure_baseline(build(), plan)
    assert figures.keys() == ROWS.keys()
    steps = build().pattern.num_steps(plan.frames)
    assert len(figures["prefill"]) == len(figures["first_sound"]) == plan.answers
    assert len(figures["step"]) == plan.answers * (steps - 1)
    assert len(figures["codec"]) == plan.answers
    # the first sound is available when the question is encoded, the steps are done and four frames are decoded
    parts = [figures[name][0] for name in ("encode", "prefill", "codec")]
    known = sum(parts) + sum(figures["step"][: steps - 1])
    assert 0.999 * known < figures["first_sound"][0] < 2 * known  # other processes may interrupt the measurement


def test_goals_are_ratios_to_the_baseline(capsys):
    figures = {side: {name: [1.0] for name in ROWS} for side in inference.SIDES}
    assert inference.report_goals(figures) == 1
    assert capsys.readouterr().out.count("missed") == len(inference.GOALS)
    figures["baseline"] = {name: [5.0, 9.0, 9.0] for name in ROWS}
    figures["openvino"]["real_time_factor"] = [0.9, 0.5, 0.1]
    assert inference.report_goals(figures) == 0
    assert "real-time factor of openvino: 0.50" in capsys.readouterr().out


def test_another_architecture_is_refused():
    with pytest.raises(ValueError, match="Qwen2 backbone without TTS adapter"):
        Baseline(build(tts_blocks=1))
