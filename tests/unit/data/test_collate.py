"""Tests of padding samples of unequal length to one batch."""

from __future__ import annotations

import torch

from omnikit.data.collate import FRAMES, STEPS, collate
from omnikit.losses import stream_losses
from omnikit.tasks import Sample
from omnikit.tokens import IGNORE
from tests.unit.toy import toy_model


def random_sample(model, length: int) -> Sample:
    steps = torch.stack([torch.randint(size, (length,)) for size in model.layout.sizes])
    return Sample(steps, torch.stack([torch.randint(size, (length,)) for size in model.layout.sizes]))


def test_padding_carries_no_label_and_no_loss():
    model = toy_model()
    samples = [random_sample(model, length) for length in (5, STEPS + 3)]
    features = [torch.randn(FRAMES + 1, 12), None]
    batch = collate(samples, features, model.layout, 12)
    assert batch.steps.shape == batch.labels.shape == (2, model.layout.num_streams, 2 * STEPS)
    assert batch.features.shape == (2, 2 * FRAMES, 12) and batch.lengths.tolist() == [FRAMES + 1, 0]
    assert torch.equal(batch.features[0, : FRAMES + 1], features[0]) and not batch.features[0, FRAMES + 1 :].any()
    for row, sample in enumerate(samples):
        length = sample.steps.shape[1]
        assert torch.equal(batch.steps[row, :, :length], sample.steps)
        assert (batch.steps[row, :, length:] == model.layout.pads()[:, None]).all()
        assert torch.equal(batch.labels[row, :, :length], sample.labels)
        assert (batch.labels[row, :, length:] == IGNORE).all()
    alone = collate(samples[:1], [None], model.layout, 12)
    unpadded = stream_losses(model, model(samples[0].steps[None]), samples[0].labels[None])
    padded = stream_losses(model, model(alone.steps), alone.labels)
    assert torch.equal(padded.counts, unpadded.counts) and torch.allclose(padded.sums, unpadded.sums, atol=1e-4)
    assert alone.features.shape == (1, 0, 12) and not alone.has_speech
