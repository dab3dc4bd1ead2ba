"""Tests of padding samples of unequal length to one batch, also against the slow code that did so formerly."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from benchmarks.earlier_loader import earlier_collate, earlier_sample
from omnikit.data.collate import FRAMES, STEPS, Batch, collate, collator
from omnikit.data.micro_batch import MicroBatch
from omnikit.label_positions import LabelPositions, label_positions
from omnikit.losses import StreamLabels, stream_losses
from omnikit.patterns import AffinePattern, Delayed, Flattened, Parallel
from omnikit.tasks import TASK_NAMES, TASKS, Sample, answer_ends, make_sample
from omnikit.tokens import IGNORE, TokenLayout
from tests.unit.toy import toy_model

PATTERNS = {
    "delayed": Delayed(num_codebooks=3),
    "falling": Delayed(num_codebooks=3, delays=[4, 2, 0], text_lead=1),
    "parallel": Parallel(num_codebooks=3),
    "flattened": Flattened(num_codebooks=3, text_lead=2),
    "two streams": AffinePattern(stream_of=[0, 1, 1], start=[1, 1, 2], stride=2),
}
LENGTHS = [(1, 1, 1), (5, 9, 2), (3, 0, 4), (2, 30, 1), (9, 2, 25), (0, 1, 0)]
"""Lengths of question, answer text and answer frames."""


def drawn(names, layout, pattern, lengths=LENGTHS):
    """Yield task, arguments of `make_sample` and features of random samples, whose features may be missing."""
    draw = torch.Generator().manual_seed(0)
    for number, (given, text, frames) in enumerate(lengths):
        task = TASKS[names[number % len(names)]]
        codes = torch.randint(50, (pattern.num_codebooks, frames), generator=draw, dtype=torch.int16)
        ids = [torch.randint(layout.text_vocab, (n,), generator=draw).tolist() for n in (given, text)]
        speech = task.given == "speech"
        question = {"audio_frames": given} if speech else {"question": ids[0]}
        features = torch.randn(given, 12, generator=draw).half() if speech else None
        yield task, {**question, "answer": ids[1], "codes": codes if task.speaks else None}, features


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("names", [*([name] for name in TASKS), list(TASKS)], ids=lambda names: "+".join(names))
def test_samples_and_batches_equal_those_of_the_earlier_code(name: str, names: list[str]):
    pattern = PATTERNS[name]
    layout = TokenLayout(text_vocab=100, codebook_size=50, carries=pattern.carries)
    ours, theirs, features = [], [], []
    for task, arguments, given in drawn(names, layout, pattern):
        ours.append(make_sample(task, layout, pattern, **arguments))
        theirs.append(earlier_sample(layout, pattern, task, TASK_NAMES.index(task.name), **arguments))
        features.append(given)
        assert torch.equal(ours[-1].steps, theirs[-1].steps) and torch.equal(ours[-1].labels, theirs[-1].labels)
    for some in (slice(0, 1), slice(2, 5), slice(None)):
        made = collate(ours[some], features[some], layout, 12)
        expected = earlier_collate(theirs[some], features[some], layout, 12, len(TASKS))
        for key in ("steps", "labels", "lengths", "step_labels"):
            assert torch.equal(getattr(made, key), getattr(expected, key)), key
        for key in ("text", "audio"):
            for one, two in zip(getattr(made, key), getattr(expected, key), strict=True):
                assert torch.equal(one, two), key
        assert made.features.dtype in (torch.float16, torch.float32)
        assert torch.equal(made.features.float(), expected.features)
        assert made.sizes.sequences == len(made.steps) and made.sizes.padded == made.steps[:, 0].numel()
        assert made.sizes.positions == sum(sample.steps.shape[1] for sample in theirs[some])
        assert made.sizes.feature_frames == made.lengths.sum() and made.sizes.code_steps == made.audio.counts[0]
        assert made.has_speech == bool((made.lengths > 0).any()) and not made.has_recordings


def random_sample(model, length: int) -> Sample:
    """Return a sample of random ids, whose labels begin at position 2."""
    whole = torch.stack([torch.randint(size, (length + 1,)) for size in model.layout.sizes]).numpy()
    return Sample(whole, start=2, text_labels=length - 2, audio_labels=length - 4)


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
    for found, labels in ((batch.text, batch.labels[:, :1]), (batch.audio, batch.labels[:, 1:])):
        for ours, searched in zip(found, label_positions(labels), strict=True):
            assert torch.equal(ours, searched)
    alone = collate(samples[:1], [None], model.layout, 12)
    labels, weights = StreamLabels.of(samples[0].labels[None]), torch.ones(alone.step_labels.shape)
    unpadded = stream_losses(model, model(samples[0].steps[None]), labels, weights)[1]
    padded = stream_losses(model, model(alone.steps), alone, weights)[1]
    assert torch.equal(padded.counts, unpadded.counts) and torch.allclose(padded.sums, unpadded.sums, atol=1e-4)
    assert alone.features.shape == (1, 0, 12) and not alone.has_speech


def test_recordings_stand_beside_features():
    model = toy_model()
    samples = [random_sample(model, 6) for _ in range(4)]
    wavs = [None, torch.ones(5), None, 2 * torch.ones(3)]
    batch = collate(samples, [torch.randn(3, 12).half(), None, None, None], model.layout, 12, wavs)
    assert batch.recorded.tolist() == [1, 3] and batch.wav_lengths.tolist() == [5, 3]
    assert batch.wav.tolist() == [[1] * 5, [2] * 3 + [0] * 2]
    assert batch.sizes.wav_samples == 8 and batch.sizes.feature_frames == 3 and batch.has_recordings
    made = torch.randn(2, 40, 12)
    features, lengths = batch.with_features(made, torch.tensor([40, 2]))
    assert lengths.tolist() == [3, 40, 0, 2] and features.dtype == torch.float32
    assert features.shape == (4, 2 * FRAMES, 12)
    assert torch.equal(features[0, :FRAMES], batch.features[0].float()) and torch.equal(features[1, :40], made[0])
    assert torch.equal(features[3, :2], made[1, :2]) and not features[3, 2:].any() and not features[2].any()


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    found = []
    for value in vars(batch).values():
        found += list(value) if isinstance(value, LabelPositions) else [value]
    return [each for each in found if isinstance(each, torch.Tensor)]


def test_all_tensors_of_a_batch_are_moved():
    model = toy_model()
    batch = collate([random_sample(model, 6)], [torch.randn(3, 12).half()], model.layout, 12, ids=["a"])
    moved = batch.to("meta")
    assert len(tensors_of(moved)) == len(tensors_of(batch)) == 15
    assert all(each.device.type == "meta" for each in tensors_of(moved))
    assert moved.ids == ("a",) and moved.sizes == batch.sizes and moved.has_speech


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU")
def test_all_tensors_of_a_batch_are_pinned():
    model = toy_model()
    batch = collate([random_sample(model, 6)], [torch.randn(3, 12).half()], model.layout, 12)
    assert all(each.is_pinned() for each in tensors_of(batch.pin_memory()))
    assert torch.equal(batch.pin_memory().to("cuda").labels.cpu(), batch.labels)


def test_a_collate_function_can_be_pickled():
    model = toy_model()
    join = pickle.loads(pickle.dumps(collator(model.layout, 12)))
    item = {"sample": random_sample(model, 5), "features": None, "wav": None, "id": "a"}
    batch = join([None, item])
    assert batch.ids == ("a",) and batch.steps.shape[0] == 1
    with pytest.raises(ValueError, match="none of the recordings of a batch can be read"):
        join([None])


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
