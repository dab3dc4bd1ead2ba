"""Test batch inference and evaluation of entries without a usable question, or with features instead of a recording."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rewriting import sound
from toy import ToyEncoder, toy_model

from omnikit.data.manifest_reader import ManifestEntry, read_manifest
from omnikit.data.manifest_writer import ManifestWriter
from omnikit.evaluate.baseline_recognisers import by_recogniser
from omnikit.generate import Decoding
from omnikit.offline.batches import gather, replies
from omnikit.prepare.tokenize import Parts, tokenize
from omnikit.tasks import TASKS

SHORT = {"decoding": Decoding(max_steps=6), "batch_size": 2}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    entries = [{"id": str(i), "t1": "what is red", "a1": sound(0.1 + 0.1 * i, i)} for i in range(3)]
    with ManifestWriter(tmp_path / "m.parquet", ["id", "t1", "a1"], embedded=True) as writer:
        writer.write(entries)
    return tmp_path / "m.parquet"


def without_recordings(manifest: Path, encoder: ToyEncoder, name: str):
    folder = manifest.parent / name
    tokenize(manifest, folder, Parts(encoder=encoder), drop=("a1",))
    return read_manifest(folder, manifest.parent / "cache")


def test_features_are_asked_where_there_is_no_recording(manifest, tmp_path):
    model = toy_model()
    recorded = read_manifest(manifest, tmp_path / "cache")
    encoded = without_recordings(manifest, model.encoder, "encoded")
    assert all(entry.a1 is None for entry in encoded)
    expected, _ = replies(model, TASKS["A1T1"], recorded, **SHORT)
    found, skipped = replies(model, TASKS["A1T1"], [encoded[0], recorded[1], encoded[2]], **SHORT)
    assert not skipped and {name: reply.text for name, reply in found.items()} == {
        name: reply.text for name, reply in expected.items()
    }


def test_another_encoders_features_and_nothing_at_all_are_counted(manifest):
    model = toy_model()
    torch.manual_seed(1)
    foreign = without_recordings(manifest, ToyEncoder(), "foreign")
    found, skipped = replies(model, TASKS["A1T1"], [*foreign, ManifestEntry("written", "x")], **SHORT)
    assert not found and skipped.reasons == {"no recording": 1, "foreign": 3}


def test_a_recogniser_hears_recordings_alone(manifest, tmp_path):
    class Ear:
        sample_rate = 16000

        def transcribe(self, wavs, language=""):
            return [str(len(wav)) for wav in wavs]

    recorded = read_manifest(manifest, tmp_path / "cache")
    encoded = without_recordings(manifest, ToyEncoder(), "encoded")
    found, skipped = gather(by_recogniser(Ear()), TASKS["A1T1"], [recorded[0], encoded[1]], batch_size=2)
    assert {name: reply.text for name, reply in found.items()} == {"0": "1600"}
    assert skipped.reasons == {"no recording": 1}
