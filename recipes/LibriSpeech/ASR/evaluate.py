"""Word error rate on the splits of LibriSpeech, or of a corpus laid out like it.

    python evaluate.py hparams/eval.yaml --checkpoint DIR --data_folder DIR

writes `asr.json`, `asr.md`, and per split `hypotheses_<split>.jsonl` and `wer_<split>.txt` (alignments).
"""

from __future__ import annotations

import sys
from pathlib import Path

from omnikit.api import load
from omnikit.data.rows import rows_from_csv
from omnikit.errors import bad_input_exits
from omnikit.evaluate.asr import SplitResult, evaluate_split, write_report
from omnikit.evaluate.text import normalizer
from omnikit.hparams import load_recipe

sys.path.append(str(Path(__file__).resolve().parents[1]))
from prepare import Summary, prepare_librispeech


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
    summaries = prepare_librispeech(hparams["data_folder"], folder / "manifests", hparams["splits"])
    omni = load(hparams["checkpoint"], device=recipe.run_opts.get("device", "cpu"))
    results = []
    for split, summary in summaries.items():
        print(summary)
        result = evaluate_split(omni.model, split, rows_from_csv(folder / "manifests" / f"{split}.csv"), **options)
        _count_unprepared(result, summary)
        results.append(result)
    about = {"checkpoint": hparams["checkpoint"] or "the shipped mini system", "normalizer": hparams["normalizer"]}
    print(write_report(folder, results, about=about, published=hparams["published"]))


def _count_unprepared(result: SplitResult, summary: Summary) -> None:
    """What was left out when the manifest was written counts as well."""
    for reason, count in summary.skipped.items():
        result.skipped.add(reason, summary.examples[reason], count)


if __name__ == "__main__":
    with bad_input_exits():
        main()
