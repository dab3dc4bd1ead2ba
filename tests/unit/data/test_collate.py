"""Tests of padding samples of unequal length to one batch."""

from __future__ import annotations

import numpy as np
import torch

from omnikit.data.collate import FRAMES, STEPS, collate
from omnikit.data.micro_batch import MicroBatch
from omnikit.losses import StreamLabels, stream_losses
from omnikit.tasks import TASK_NAMES, TASKS, Sample, answer_ends, make_sample
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
    labels, weights = StreamLabels.of(samples[0].labels[None]), torch.ones(alone.step_labels.shape)
    unpadded = stream_losses(model, model(samples[0].steps[None]), labels, weights)[1]
    padded = stream_losses(model, model(alone.steps), alone, weights)[1]
    assert torch.equal(padded.counts, unpadded.counts) and torch.allclose(padded.sums, unpadded.sums, atol=1e-4)
    assert alone.features.shape == (1, 0, 12) and not alone.has_speech


def test_the_labels_of_a_batch_or_of_its_step_are_counted_by_task_and_stream():
    model = toy_model()
    encode = model.llm.tokenizer.encode
    codes = torch.zeros(model.codec.num_codebooks, 2, dtype=torch.long)
    samples = [
        make_sample(TASKS["T1T2"], model.layout, model.pattern, question=encode("a"), answer=encode("abc")),
        make_sample(TASKS["T1A1"], model.layout, model.pattern, question=encode("a"), answer=encode("a"), codes=codes),
    ]
    batch = collate(samples, [None, None], model.layout, 12)
    written, spoken = TASK_NAMES.index("T1T2"), TASK_NAMES.index("T1A1")
    length = max(answer_ends(TASKS["T1A1"], model.pattern, text=1, frames=2)[1:]) + 1
    assert batch.step_labels[written].tolist() == [4] + [0] * (model.layout.num_streams - 1)
    assert batch.step_labels[spoken].tolist() == [0] + [length] * (model.layout.num_streams - 1)
    assert batch.ends_step and set(batch.text.tasks[:4].tolist()) == {written}
    assert set(batch.audio.tasks[:length].tolist()) == {spoken}
    step = MicroBatch(samples, np.arange(2 * len(TASKS)).reshape(-1, 2), ends_step=False)
    batch = collate(samples, [None, None], model.layout, 12, step=step)
    assert not batch.ends_step
    assert batch.step_labels[1].tolist() == [2] + [3] * (model.layout.num_streams - 1)
