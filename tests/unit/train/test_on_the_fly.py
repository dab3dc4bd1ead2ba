"""Tests that features computed in the training step give the same samples and losses as cached ones."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from rewriting import sound
from torch import nn
from toy import ToyEncoder, toy_model

from omnikit.data.manifest_writer import ManifestWriter
from omnikit.data.samples import collate_items, make_dataset
from omnikit.data.sources import read_sources
from omnikit.interfaces import AudioEncoder
from omnikit.model import OmniLM
from omnikit.prepare.tokenize import Parts, tokenize
from omnikit.train.brain import encoded
from tests.unit.qa_brain import brain_of, losses_of

TASKS = {"A1T1": 1.0, "T1T2": 1.0}
FIELDS = ["id", "duration", "t1", "t2", "a1"]


class Dropping(ToyEncoder):
    """A toy audio encoder with dropout, whose features are correct only in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.9)

    def forward(self, wav, lengths):
        features, lengths = super().forward(wav, lengths)
        return self.drop(features), lengths


@pytest.fixture
def model() -> OmniLM:
    model = toy_model()
    model.encoder = Dropping()
    model.freeze_all_but(["adapter", "llm"])
    return model


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Write a manifest of four recordings of different lengths, one of them without a duration; return its path."""
    texts = ["what is red", "the cat", "a dog sees the cat", "yes"]
    entries = [
        {"id": str(i), "duration": 0.1 + 0.07 * i, "t1": text, "t2": "no", "a1": f"{i}.wav"}
        for i, text in enumerate(texts)
    ]
    for i, entry in enumerate(entries):
        (tmp_path / entry["a1"]).write_bytes(sound(entry["duration"], i))
    with ManifestWriter(tmp_path / "m.csv", FIELDS) as writer:
        writer.write([*entries[:3], {**entries[3], "duration": None}])
    return tmp_path / "m.csv"


def samples(model: OmniLM, manifest: Path, features: str, tasks: dict[str, float] = TASKS):
    options = {"qa": {"manifest": manifest, "tasks": list(tasks)}}
    cache = manifest.parent / "cache"
    return make_dataset(model, read_sources(options, model, tasks=tasks, cache_folder=cache, features=features), tasks)


def batch_of(model: OmniLM, dataset):
    return collate_items(model)([dataset[i] for i in range(len(dataset))])


def test_losses_are_those_of_cached_features(model, manifest, tmp_path):
    live = samples(model, manifest, "on_the_fly")
    assert not list((tmp_path / "cache").rglob("*.bin"))
    cached = samples(model, manifest, "cached")
    assert live.tasks.tolist() == cached.tasks.tolist() and live.lengths.tolist() == cached.lengths.tolist()
    batches = batch_of(model, live), batch_of(model, cached)
    assert torch.equal(batches[0].steps, batches[1].steps) and torch.equal(batches[0].labels, batches[1].labels)
    assert batches[0].recorded.tolist() == [0, 1, 2, 3] and not batches[1].has_recordings
    assert all(batch.has_speech for batch in batches)
    brain = brain_of(model)
    brain.modules.train()  # as in a training stage
    found, gradients = [], []
    for batch in batches:
        model.zero_grad()
        total, losses = losses_of(brain, batch)
        total.backward()
        found.append(losses)
        gradients.append([p.grad.clone() for p in model.adapter.parameters()])
        assert all(p.grad is None for p in model.encoder.parameters())
    assert found[0].sums[:, 0].sum() > 0 and torch.equal(found[0].counts, found[1].counts)
    assert torch.allclose(found[0].means(), found[1].means(), atol=1e-3)  # cached features are float16
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-2)
    heard = encoded(model, batches[0])
    assert torch.allclose(heard[0][:, : batches[1].features.shape[1]], batches[1].features.float(), atol=1e-3)
    assert torch.equal(heard[1], batches[1].lengths)


def test_rows_that_have_features_are_not_encoded(model, manifest, tmp_path):
    tokenize(manifest, tmp_path / "out", Parts(encoder=model.encoder), drop=("a1",))
    ready = samples(model, tmp_path / "out", "on_the_fly", {"A1T1": 1.0})
    live = samples(model, manifest, "on_the_fly", {"A1T1": 1.0})
    assert not batch_of(model, ready).has_recordings
    mixed = collate_items(model)([ready[0], live[1], ready[2], live[3]])
    assert mixed.recorded.tolist() == [1, 3] and mixed.has_recordings
    brain = brain_of(model)
    expected = losses_of(brain, batch_of(model, ready))[1]
    assert torch.allclose(losses_of(brain, mixed)[1].means(), expected.means(), atol=1e-3)


def test_a_recording_that_was_lost_is_left_out_of_its_batch(model, manifest, tmp_path, caplog):
    live = samples(model, manifest, "on_the_fly", {"A1T1": 1.0})
    (tmp_path / "1.wav").unlink()
    with caplog.at_level(logging.WARNING):
        assert batch_of(model, live).steps.shape[0] == 3
    assert "entry 1 is skipped in its batch" in caplog.text and "1.wav: no such file" in caplog.text
    with pytest.raises(ValueError, match="none of the recordings of a batch can be read"):
        collate_items(model)([live[1]])


def test_what_the_header_tells_is_no_sample(model, manifest, tmp_path, caplog):
    (tmp_path / "3.wav").write_bytes(b"no sound")  # the recording without a duration
    assert samples(model, manifest, "on_the_fly", {"A1T1": 1.0}).table.entries.tolist() == [0, 1, 2]
    assert "qa: 1 of 4 recordings skipped: 1 unreadable (such as 3)" in caplog.text


def test_wrong_choices_are_told(model, manifest):
    with pytest.raises(ValueError, match="features: live; choices: auto, cached, on_the_fly"):
        samples(model, manifest, "live")

    class Mute(Dropping):
        num_frames = AudioEncoder.num_frames

    model.encoder = Mute()
    with pytest.raises(ValueError, match="features: on_the_fly: the encoder Mute has no num_frames; choices: cached"):
        samples(model, manifest, "on_the_fly")
