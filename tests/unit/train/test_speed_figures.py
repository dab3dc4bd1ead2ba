"""Test the figures of the speed of a training: what is counted, divided by which time, and shown how."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from omnikit.data.collate import BatchSizes
from omnikit.train import operations
from omnikit.train.operations import StepOperations, peak_operations
from omnikit.train.speed_figures import SpeedFigures, described
from tests.unit.toy import toy_model


class Clock:
    """A clock that tests set."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def batch(positions: int, padded: int, *, frames: int = 0, samples: int = 0, codes: int = 0, text: int = 64):
    sizes = BatchSizes(4, positions, padded, frames, samples, codes)
    return SimpleNamespace(
        sizes=sizes,
        text=SimpleNamespace(positions=torch.zeros(text)),
        audio=SimpleNamespace(positions=torch.zeros(128)),
    )


def figures_of(clock: Clock, **options) -> SpeedFigures:
    model = toy_model(tts_blocks=1)
    model.freeze_all_but(["adapter", "llm", "tts_adapter", "new_text_embeddings", "new_audio_embeddings"])
    return SpeedFigures(model, clock=clock, **options)


def test_figures_of_an_epoch():
    clock, loader = Clock(), SimpleNamespace(waiting=SimpleNamespace(seconds=7.0))
    speed = figures_of(clock, processes=2, loader=loader)
    for waited in (1.0, 2.0):  # an iteration began in between
        clock.now += 5.0
        loader.waiting.seconds = waited
        speed.add(batch(900, 1000, frames=200, samples=16000, codes=5333))
    found = speed.figures(steps_left=720)
    assert found["positions_per_second"] == pytest.approx(2 * 900 / 5)
    # 200 frames at 100 Hz, 16000 samples at 16 kHz, 5333 codes at 5333 Hz
    assert found["audio_seconds_per_second"] == pytest.approx(2 * (2 + 1 + 1) / 5, rel=1e-3)
    assert found["waiting"] == pytest.approx(0.2)
    assert found["padding"] == pytest.approx(0.1)
    assert found["hours_left"] == pytest.approx(1.0)
    assert set(found) == {"positions_per_second", "audio_seconds_per_second", "waiting", "padding", "hours_left"}
    assert described(found) == (
        "360 positions/s, 2 s of audio/s, waited for data 20.0%, padding 10.0%, 1.0 h left"
    )


def test_an_epoch_does_not_count_the_time_before_it():
    clock = Clock()
    speed = figures_of(clock)
    clock.now += 1000  # a validation
    speed.restart()
    clock.now += 2
    speed.add(batch(100, 100), ends_step=False)
    assert speed.figures(10)["positions_per_second"] == pytest.approx(50)
    assert "waiting" not in speed.figures(10)  # the loader does not count it
    assert "hours_left" not in speed.figures(10)  # no optimiser step was taken
    assert speed.shown() == {"k/s": "0.05"}


def test_an_epoch_without_batches_has_figures():
    assert figures_of(Clock()).figures(10)["positions_per_second"] == 0


def test_mfu_is_relative_to_the_peak_of_one_gpu():
    clock = Clock()
    speed = figures_of(clock, processes=8)
    speed.peak = 1e9
    clock.now += 2
    speed.add(batch(512, 512))
    counted = speed.operations.count(sequences=4, positions=512, text_labels=64, audio_labels=128, frames=0)
    assert speed.figures(1)["mfu"] == pytest.approx(counted / 2 / 1e9)
    assert speed.shown()["MFU"] == f"{counted / 2 / 1e9:.0%}"


def weights_of(module: nn.Module) -> int:
    return sum(one.weight.numel() for one in module.modules() if isinstance(one, nn.Linear))


def test_frozen_matrices_have_no_gradient_of_their_weights_and_nothing_below_has_one():
    model = toy_model(tts_blocks=1)
    count = {}
    for trainable in (("tts_adapter",), ("adapter", "tts_adapter"), ("adapter", "llm", "tts_adapter")):
        model.freeze_all_but(list(trainable))
        count[len(trainable)] = StepOperations(model)
    llm, tts = weights_of(model.llm.trunk), weights_of(model.tts_adapter)
    assert [count[n].per_position for n in (1, 2, 3)] == [2 * llm + 6 * tts, 4 * llm + 6 * tts, 6 * llm + 6 * tts]
    assert count[3].per_text_label == 6 * weights_of(model.llm.lm_head) + 4 * weights_of(model.new_text_embeddings)
    adapter = [weights_of(one) for one in model.adapter.modules() if isinstance(one, nn.Linear)]
    assert count[3].per_frame == 4 * adapter[0] + 6 * sum(adapter[1:])
    width = 2 * 16
    assert (count[1].per_pair, count[3].per_pair) == (2 * 2 * width + 6 * width, 3 * 6 * width)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12), ("NVIDIA T4", None),
    ],
)  # fmt: skip
def test_peaks_of_gpus(monkeypatch, name, peak):
    monkeypatch.setattr(operations.torch.cuda, "get_device_name", lambda device: name)
    assert peak_operations(torch.device("cuda"), "bf16") == peak
    assert peak_operations(torch.device("cuda"), "fp32") is None
    assert peak_operations(torch.device("cpu"), "bf16") is None
