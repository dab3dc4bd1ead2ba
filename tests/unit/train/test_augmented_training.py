"""Tests of augmentation on the fly: training recordings alone, equal for any workers, planned lengths, bad options."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from rewriting import sound
from toy import toy_model

from omnikit.data.augment import Augment, Level, Noise, SeededAugment, Silence, SpeedChange
from omnikit.data.manifest_writer import ManifestWriter
from omnikit.data.micro_batch import MicroBatch
from omnikit.data.sample_draws import SampleDraws
from omnikit.data.samples import Samples, make_dataset
from omnikit.data.sources import read_sources
from omnikit.data.step_plan import EffectiveBatch
from omnikit.data.step_sampler import StepSampler
from omnikit.hparams import choices
from omnikit.hparams.named_parts import AUGMENT
from omnikit.model import OmniLM
from omnikit.prepare.tokenize import Parts, tokenize
from omnikit.train.loader import batch_loader
from omnikit.train.recipe_checks import check_stage
from omnikit.train.run import read_samples, step_sampler

TASKS = {"A1T1": 1.0}
EFFECTS = Augment(
    speed=SpeedChange(probability=0.5, factor=(0.8, 1.2)),
    silence=Silence(probability=0.5, seconds=(0.0, 0.1)),
    noise=Noise(probability=0.5, snr_db=(0, 10)),
    level=Level(probability=1, gain_db=(-20, 0)),
)
AUGMENTED = SeededAugment(EFFECTS, 3)


@pytest.fixture
def model() -> OmniLM:
    torch.manual_seed(0)
    return toy_model()


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Write a manifest of twelve recordings, half of them without a duration; return its path."""
    with ManifestWriter(tmp_path / "m.csv", ["id", "duration", "t1", "a1"]) as writer:
        for i in range(12):
            (tmp_path / f"{i}.wav").write_bytes(sound(0.1 + 0.05 * i, i))
            duration = 0.1 + 0.05 * i if i % 2 else None
            writer.write([{"id": str(i), "duration": duration, "t1": "what is red", "a1": f"{i}.wav"}])
    return tmp_path / "m.csv"


def samples(model: OmniLM, manifest: Path, augment: SeededAugment | None = AUGMENTED, **options) -> Samples:
    sources = {"asr": {"manifest": manifest, "tasks": ["A1T1"]}}
    found = {"tasks": TASKS, "cache_folder": manifest.parent / "cache", "features": "on_the_fly", **options}
    return make_dataset(model, read_sources(sources, model, augment=augment, **found), TASKS)


def sampler_of(found: Samples) -> StepSampler:
    return StepSampler(
        SampleDraws(found.table, TASKS, seed=1), max_batch_length=2000, steps_per_epoch=6, wanted=EffectiveBatch(4)
    )


def wavs(found: Samples, sampler: StepSampler, model: OmniLM, workers: int = 0) -> list[tuple[tuple[str, ...], bytes]]:
    loader = batch_loader(found, sampler, model, num_workers=workers, device="cpu")
    return [(batch.ids, batch.wav.numpy().tobytes()) for batch in loader]


def test_recordings_are_augmented_anew_in_each_step(model, manifest):
    found, plain = samples(model, manifest), samples(model, manifest, None)
    first, again, later = (found.__getitems__(MicroBatch([3], step=step))[0] for step in (0, 0, 1))
    assert torch.equal(first["wav"], again["wav"]) and first["wav"].dtype == torch.float32
    assert not np.array_equal(first["wav"][:1000], later["wav"][:1000])
    clean = plain[3]["wav"]
    assert np.array_equal(first["wav"], AUGMENTED(clean.numpy(), 16000, "3", 0))
    for item in (first, later):  # the prompt has as many positions as the augmented recording has features
        assert item["sample"].steps.shape[-1] == _length(model, found, len(item["wav"]))


def _length(model: OmniLM, found: Samples, samples: int) -> int:
    fixed = found[3]["sample"].steps.shape[-1] - model.num_speech_positions(np.array([_frames(model, found)]))[0]
    return fixed + model.num_speech_positions(np.array([model.encoder.num_frames(samples)]))[0]


def _frames(model: OmniLM, found: Samples) -> int:
    return model.encoder.num_frames(len(found[3]["wav"]))


def test_the_same_for_any_workers_and_after_a_resume(model, manifest):
    found = samples(model, manifest)
    expected = wavs(found, sampler_of(found), model)
    assert len({wav for _, wav in expected}) == len(expected)
    assert wavs(found, sampler_of(found), model, workers=2) == expected
    resumed = sampler_of(found)
    resumed.start_at(4)
    assert wavs(found, resumed, model) == expected[-2:]


def test_no_sample_is_longer_than_planned(model, manifest):
    found, plain = samples(model, manifest), samples(model, manifest, None)
    assert (found.lengths > plain.lengths).all()
    assert samples(model, manifest).lengths.tolist() == found.lengths.tolist()  # from the stored index
    longest = np.zeros(12, int)
    for step in range(60):
        made = found.__getitems__(MicroBatch(range(12), step=step))
        longest = np.maximum(longest, [item["sample"].length for item in made])
    assert (longest <= found.lengths).all() and (longest > plain.lengths).all()


def test_recordings_as_long_as_the_encoder_accepts(model, manifest):
    frames = model.encoder.num_frames

    def limited(samples: int) -> int:
        if samples > 8000:
            raise ValueError("too long")
        return frames(samples)

    model.encoder.num_frames = limited
    try:
        found = samples(model, manifest)
        assert len(found) == 9 and found.lengths.max() == found.lengths[-1]
        for step in range(30):
            for item in found.__getitems__(MicroBatch(range(9), step=step)):
                assert len(item["wav"]) <= 8000
    finally:
        del model.encoder.num_frames


def test_validation_is_not_augmented(model, manifest):
    hparams = {
        "tasks": TASKS, "cache_folder": manifest.parent / "cache", "features": "on_the_fly", "max_encode_hours": None,
        "max_sample_length": None, "augment": EFFECTS, "seed": 3,
    }  # fmt: skip
    sources = {"asr": {"manifest": manifest, "tasks": ["A1T1"]}}
    valid, train = (read_samples(model, sources, hparams, training=training) for training in (False, True))
    clean = samples(model, manifest, None)
    assert all(torch.equal(valid[i]["wav"], clean[i]["wav"]) for i in range(12))
    assert not any(np.array_equal(train[i]["wav"], clean[i]["wav"]) for i in range(12))
    assert np.array_equal(train[5]["wav"], samples(model, manifest)[5]["wav"])
    assert valid.lengths.tolist() == clean.lengths.tolist()
    with pytest.raises(ValueError, match=r"augment: the script reads its training samples without it"):
        step_sampler(valid, hparams, {})


def test_stored_features_are_not_augmented(model, manifest, tmp_path, caplog):
    for features in ("cached", "auto"):
        with pytest.raises(
            ValueError, match=r"augment: needs --features on_the_fly, since .*omnikit tokenize .*--copies"
        ):
            samples(model, manifest, features=features)
    tokenize(manifest, tmp_path / "out", Parts(encoder=model.encoder))
    with pytest.raises(ValueError, match=r"augment: no source has recordings whose features .* on the fly; or write"):
        samples(model, tmp_path / "out")
    sources = {name: {"manifest": path, "tasks": ["A1T1"]} for name, path in (("a", manifest), ("b", tmp_path / "out"))}
    with caplog.at_level(logging.WARNING):
        read_sources(
            sources, model, tasks=TASKS, cache_folder=tmp_path / "cache", features="on_the_fly", augment=AUGMENTED
        )
    assert "sources.b: 12 entries have stored features, which are not augmented" in caplog.text


def test_names_are_checked_before_anything_is_built():
    check_stage({"augment": None})
    for name in choices(AUGMENT):
        check_stage({"augment": name})
    with pytest.raises(ValueError, match=r"--augment room: no such augment.*rooms"):
        check_stage({"augment": "room"})
    with pytest.raises(ValueError, match=r"--augment True: must be a name \(choices: rooms, telephone\) or null"):
        check_stage({"augment": True})
