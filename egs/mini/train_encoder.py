"""Pre-trains the encoder of the mini system with CTC on the phonemes of the mini corpus.

    python train_encoder.py hparams/encoder.yaml [--steps 2400] [--output_folder DIR] ...

A killed training resumes from its last checkpoint. At the end the weights of the encoder are written to
`export_folder`, with a model card.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from corpus_plan import RANDOM_CHAPTER, SPOKEN_CHAPTER

from omnikit.data.manifest_reader import ManifestEntry, read_manifest
from omnikit.errors import bad_input_exits, full_disk_names
from omnikit.hparams import load_recipe
from omnikit.prepare.corpus import prepare
from omnikit.train.ctc_pretraining import export, train_encoder
from omnikit.train.phoneme_dataset import entries_with_phonemes
from omnikit.train.recipe_checks import check_encoder
from omnikit.train.run import make_output_folder

sys.path.append(str(Path(__file__).resolve().parents[2] / "recipes" / "LibriSpeech"))
from prepare import CORPUS

GROUPS = {str(RANDOM_CHAPTER): "random words", str(SPOKEN_CHAPTER): "as people speak"}
"""Names of the chapters of a split whose phone error rate is computed separately."""
VALID_SPLITS = ("dev-clean", "test-clean", "test-other")
CARD = """# The mini encoder

Architecture: Whisper's encoder, width 192, 4 blocks, {parameters} parameters, unpadded input, 50 features/s
(`hparams/encoder/mini.yaml`). `model.safetensors` holds the weights in bf16.

Training: from random weights by `python train_encoder.py hparams/encoder.yaml` in `egs/mini`, {steps} steps of CTC
on phonemes, on `train-clean`, a part of `train-voice` and the training questions of the mini corpus, all of it
synthetic speech of espeak-ng; with noise, resampling, silence and masks on log-mel.

Phone error rate of these weights with greedy decoding by the CTC head (which is not part of the file). The references
are American phonemes whatever the accent of the voice; the voices of `test-other` (with noise) and `questions-unseen`
do not occur in training.

{table}

Intended use: the mini corpus and experiments with it. No human voices occur in training.
"""


def sentences(split: str, entries: Sequence[ManifestEntry]) -> dict[str, dict[str, Any]]:
    """Return the entries of a split with their phonemes, by id; the chapters in `GROUPS` form separate groups."""
    found = entries_with_phonemes(entries, split)
    for name, entry in found.items():
        if (group := GROUPS.get(name.split("-")[-2])) is not None:
            entry["group"] = f"{split}, {group}"
    return found


def read_data(hparams: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the entries for training and for validation, by id, after writing missing manifests."""
    splits = ["train-clean", "train-voice", *VALID_SPLITS]
    data, folder = Path(hparams["data_folder"]), Path(hparams["manifests"])
    for summary in prepare(CORPUS, data / "corpus", folder, splits):
        print(summary)
    share = {"train-voice": hparams["voice_share"]}
    entries = {}
    for split in splits:
        entries[split] = sentences(split, some(read_manifest(folder / f"{split}.csv"), share.get(split, 1.0)))
    for split, name in (("questions", "train"), ("questions-unseen", "test_unseen")):
        entries[split] = entries_with_phonemes(read_manifest(data / "qa" / f"{name}.parquet", folder / "tables"), split)
    train = entries["train-clean"] | entries["train-voice"] | entries["questions"]
    return train, {
        name: entry for split in (*VALID_SPLITS, "questions-unseen") for name, entry in entries[split].items()
    }


def some(entries: Sequence[ManifestEntry], share: float, seed: int = 1) -> list[ManifestEntry]:
    """Return a random subset of manifest entries that makes up the given share of them."""
    return random.Random(seed).sample(entries, round(share * len(entries)))


def main() -> None:
    recipe = load_recipe(check=check_encoder)
    hparams = recipe.hparams
    torch.manual_seed(hparams["seed"])
    with full_disk_names(hparams["output_folder"]):
        make_output_folder(recipe)
        export(*train_encoder(recipe, *read_data(hparams)), CARD)
    print(f"weights and card written to {hparams['export_folder']}")


if __name__ == "__main__":
    with bad_input_exits():
        main()
