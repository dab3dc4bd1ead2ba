"""Test the export of a trained mini system: its card has the figures of the results, and none of another system."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

EGS = Path(__file__).resolve().parents[2] / "egs" / "mini"
sys.path.append(str(EGS))

import export_system  # noqa: E402

from omnikit import checkpoint  # noqa: E402

FINGERPRINT = "ab" * 32


def rates(wer: float) -> dict:
    return {"utterances": 7, "wer": wer}


def share(percent: float | None, asked: int = 7) -> dict:
    return {"right": 1, "asked": asked, "percent": percent}


FOLLOW_UPS = {"history": share(91.5), "alone": share(2.5), "frequent_of_text": share(3.5), "cropped": share(88.5, 363)}
RESULTS = {
    "asr/asr": {
        "splits": {split: {"groups": {"all": rates(wer)}} for split, wer in (("dev-clean", 99.5), ("test-clean", 1.5))}
    },
    "qa/qa": {
        "judge": "pocketsphinx",
        "splits": {"test_seen": {"text": {"asked": 8, "percent": 98.5}}},
        "intelligibility": {"original recordings": rates(4.5)},
    },
    "tts/tts": {"intelligibility": {"original recordings": rates(5.5)}},
    "dialogs/dialogs": {"splits": {"dialogs_test_crop": {"speech": {"follow_ups": FOLLOW_UPS}}}},
    "fsdd/asr": {
        "splits": {"test-ben": {"groups": {"all": rates(8.5), "single digits": rates(18.5)}}},
        "means": {"all": {"splits": 5, "wer": 7.5}, "single digits": {"splits": 5, "wer": 17.5}},
    },
}


@pytest.fixture
def results(saved, tmp_path) -> Path:
    """Folder of results without an annealing, whose last stage is a tiny checkpoint."""
    folder = tmp_path / "results"
    shutil.copytree(saved, folder / "stage3")
    (folder / "stage3" / "hyperparams.yaml").write_text("seed: 77\n")
    (folder / "stage3" / "curves.png").touch()
    for number, stage in enumerate(("stage1", "stage2", "stage3", "continue", "anneal"), 1):
        (folder / stage).mkdir(exist_ok=True)
        (folder / stage / "train_log.jsonl").write_text(f'{{"step": 1}}\n{{"step": {number * 111}}}\n')
    for name, scores in RESULTS.items():
        file = folder / f"{name}.json"
        file.parent.mkdir()
        file.write_text(json.dumps({"checkpoint": str(folder / "stage3"), **scores}))
    return folder


def test_the_folder_holds_the_system_and_a_card_with_its_figures(results, tmp_path):
    out = tmp_path / "mini"
    export_system.export(results, out)
    names = {"README.md", "hparams.yaml", "model.safetensors", "tokenizer.model"}
    assert {file.name for file in out.iterdir()} == names
    assert checkpoint.load(out).recipe
    card = (out / "README.md").read_text()
    assert "run.sh --seed 77`" in card and "111 (stage1), 222 (stage2), 333 (stage3)." in card and "Whisper" not in card
    for row in (
        "| test-clean, all | 7 | 1.5 |", "| test_seen | 8 | 98.5 |", "| texts: original recordings | 7 | 5.5 |",
        "| answers: original recordings | 7 | 4.5 |",
        "| dialogs_test_crop, speech | 7 | 91.5 | 2.5 | 3.5 | 88.5 (363) |",
        "| ben | 8.5 | 18.5 |", "| mean of 5 | 7.5 | 17.5 |",
    ):  # fmt: skip
        assert row in card, row
    assert "99.5" not in card  # a dev split


def test_the_card_says_which_public_weights_are_needed(results, tmp_path):
    with (results / "stage3" / "hparams.yaml").open("a") as file:
        file.write(f'public_weights:\n  encoder: {{name: "base", fingerprint: "{FINGERPRINT}"}}\n')
    weights = results / "stage3" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: value for name, value in tensors.items() if not name.startswith("encoder.")}, weights)
    card = export_system.card("mini_whisper", results)
    assert "# mini_whisper\n" in card and 'omnikit.load("mini_whisper")' in card
    assert f"`{FINGERPRINT}`" in card and "--encoder.weights base.pt" in card and "OMNIKIT_WEIGHTS" in card
    assert "run.sh --ears whisper_base --seed 77" in card and "MIT" in card


@pytest.mark.parametrize(
    ("last", "steps"),
    [("anneal", "111 (stage1), 222 (stage2), 333 (stage3), 555 (anneal)."), ("continue", "444 (continue).")],
)
def test_what_the_last_stage_has_trained_is_exported(results, tmp_path, last, steps):
    for name in ("model.safetensors", "hparams.yaml", "tokenizer.model", "hyperparams.yaml"):
        (results / "stage3" / name).rename(results / last / name)
    with pytest.raises(ValueError, match=f"figures of the checkpoint .*stage3, not of .*{last}"):
        export_system.export(results, tmp_path / "mini")
    for name in RESULTS:
        file = results / f"{name}.json"
        file.write_text(file.read_text().replace("/stage3", f"/{last}"))
    export_system.export(results, tmp_path / "mini", "--device cuda", note="A mean of two.")
    card = (tmp_path / "mini" / "README.md").read_text()
    assert "run.sh --device cuda --seed 77`" in card and f"Optimiser steps: {steps}\nA mean of two.\nNo human" in card
    assert checkpoint.load(tmp_path / "mini").recipe


def test_without_real_speakers_the_card_says_so(results):
    shutil.rmtree(results / "fsdd")
    assert "Speech of real people: not measured." in export_system.card("mini", results)


def test_missing_results_and_those_of_another_system_are_refused(results, tmp_path):
    (results / "tts" / "tts.json").unlink()
    with pytest.raises(ValueError, match=r"tts\.json: no such results; run\.sh --stage 10"):
        export_system.export(results, tmp_path / "mini")
    (results / "tts" / "tts.json").write_text(json.dumps({"checkpoint": "the shipped mini system"}))
    with pytest.raises(ValueError, match="figures of the checkpoint the shipped mini system, not of"):
        export_system.export(results, tmp_path / "mini")
    assert not (tmp_path / "mini").exists()
