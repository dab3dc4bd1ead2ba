"""Word error rate on the splits of LibriSpeech, or of a corpus laid out like it.

    python evaluate.py hparams/eval.yaml --checkpoint DIR --data_folder DIR

writes `asr.json`, `asr.md`, and per split `hypotheses_<split>.jsonl` and `wer_<split>.txt` (alignments).
"""

from __future__ import annotations

import sys
from pathlib import Path

from omnikit.api import load
from omnikit.data.corpus import prepare
from omnikit.data.rows import read_manifest
from omnikit.errors import bad_input_exits
from omnikit.evaluate.asr import evaluate_split, write_report
from omnikit.evaluate.text import normalizer
from omnikit.hparams import load_recipe

sys.path.append(str(Path(__file__).resolve().parents[1]))
from prepare import CORPUS


def main() -> None:
    recipe = load_recipe()
    hparams = recipe.hparams
    folder = Path(hparams["output_folder"])
    options = {
        "normalize": normalizer(hparams["normalizer"]),
        "groups": {group["name"]: group["ids"] for group in hparams["groups"]},
        "decoding": hparams["decoding"],
        "batch_size": hparams["batch_size"],
        "folder": folder,
    }
    summaries = list(prepare(CORPUS, hparams["data_folder"], folder / "manifests", hparams["splits"]))
    omni = load(hparams["checkpoint"], device=recipe.run_opts.get("device", "cpu"))
    results = []
    for summary in summaries:
        print(summary)
        rows = read_manifest(folder / "manifests" / f"{summary.split}.csv")
        result = evaluate_split(omni.model, summary.split, rows, **options)
        result.skipped.update(summary.skipped)  # what was left out when the manifest was written counts as well
        results.append(result)
    about = {"checkpoint": hparams["checkpoint"] or "the shipped mini system", "normalizer": hparams["normalizer"]}
    print(write_report(folder, results, about=about, published=hparams["published"]))


if __name__ == "__main__":
    with bad_input_exits():
        main()
