"""Test the way of the mini systems from recordings to a checkpoint: encoding, stages on stored features, evaluation.

Small Whisper weights that the test makes stand in for those of Whisper base.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import whisper

from omnikit import checkpoint
from omnikit.data.manifest_reader import read_manifest
from tests.recipes.conftest import MINI_SYSTEM
from tests.recipes.test_train import SMALL

TRAIN = "recipes/VoiceAssistant/QA/train.py"
WIDTH, LAYERS = 16, 2
"""Size of the stand-in for Whisper base, that of `size: tiny`."""
ENCODER = ["--encoder", "whisper_base", "--encoder.pad_to_30s", "false", "--encoder.size", "tiny"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Random weights in openai-whisper's format."""
    torch.manual_seed(0)
    dims = whisper.model.ModelDimensions(80, 1500, WIDTH, 2, LAYERS, 20, 8, WIDTH, 2, 1)
    file = tmp_path_factory.mktemp("weights") / "base.pt"
    torch.save({"dims": vars(dims), "model_state_dict": whisper.model.Whisper(dims).state_dict()}, file)
    return file


def test_stages_train_on_stored_features_of_whisper(run_here, data: Path, weights: Path, tmp_path: Path):
    """The system of both stages has the weights of the file, and no stage reads a recording of a question."""
    encoder = [*ENCODER, "--encoder.weights", weights]
    manifests = {
        "asr": data / "manifests" / "train-clean.csv",
        "qa": data / "qa" / "train.parquet",
        "dialogs": data / "qa" / "dialogs_train.parquet",
        "dialogs_more": data / "qa" / "dialogs_more.parquet",
    }
    flags: list[object] = []
    for name, manifest in manifests.items():
        out = tmp_path / "features" / name
        words = ["tokenize", manifest, "--save_folder", out, "--drop", "a1", *encoder]
        status, written, error = run_here("omnikit", *words)
        assert status == 0, written + error
        entries = read_manifest(out, tmp_path / "cache")
        assert len(entries) == (3 if name == "asr" else 4)  # one recording of train-clean is damaged
        assert all(entry.a1 is None and entry.features.load().shape[1] == WIDTH for entry in entries)
        flags += [f"--sources.{name}.manifest", out]
    small = [word for key, value in SMALL.items() if not key.startswith("encoder.") for word in (f"--{key}", value)]
    own = [MINI_SYSTEM, MINI_SYSTEM.parent / "whisper_base.yaml", *small, "--data_folder", data, "--cache_folder"]
    own += [tmp_path / "cache", "--device", "cpu", "--encoder.size", "tiny", *flags]
    one, two = tmp_path / "stage1", tmp_path / "stage2"
    start = ["--encoder.weights", weights, "--output_folder", one]
    status, written, error = run_here(TRAIN, "hparams/stage1.yaml", *own, *start)
    assert status == 0, written + error
    more = ["--initial_weights", one, "--output_folder", two]
    status, written, error = run_here(TRAIN, "hparams/stage2.yaml", *own, *more)
    assert status == 0, written + error
    published = whisper.load_model(str(weights), device="cpu").encoder.state_dict()
    trained = checkpoint.load(two).encoder.encoder.state_dict()
    assert all(torch.equal(trained[name], value.bfloat16().float()) for name, value in published.items())
