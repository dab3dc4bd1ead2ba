"""Test `AudioEncoder.num_frames`, which returns the number of features of a recording without encoding it."""

from __future__ import annotations

import pytest
import torch

from omnikit.hparams import build_part

ENCODERS = [
    ("whisper_small", {"pad_to_30s": False}),
    ("whisper_small", {"pad_to_30s": True}),
    ("qwen2_audio", {"pad_to_30s": False}),
    ("qwen2_audio", {"pad_to_30s": True}),
    ("hubert_base", {}),
    ("mini", {}),
]


@pytest.mark.parametrize(("name", "options"), ENCODERS)
def test_as_many_as_are_made(name, options):
    encoder = build_part("encoder", name, size="tiny", weights=None, **options).eval()
    lengths = torch.tensor([640, 641, 799, 800, 959, 960, 1279, 1280, 3333, 16001])
    with torch.inference_mode():
        made = encoder(torch.rand(len(lengths), int(lengths.max())) - 0.5, lengths)[1]
    assert [encoder.num_frames(samples) for samples in lengths.tolist()] == made.tolist()
    with pytest.raises(ValueError, match="a recording of 100 samples is shorter than one frame"):
        encoder.num_frames(100)


def test_too_long_is_refused_as_when_it_is_encoded():
    encoder = build_part("encoder", "whisper_small", size="tiny", weights=None)
    with pytest.raises(ValueError, match=r"a recording of 30\.1 s is longer than the encoder's 30 s"):
        encoder.num_frames(round(30.1 * 16000))
