"""The command that all `recipes/<Corpus>/ASR/evaluate.py` share: from a recipe's YAML file to error rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omnikit.api import load
from omnikit.data.manifest_reader import read_manifest
from omnikit.evaluate.asr import evaluate_split, write_report
from omnikit.evaluate.baseline_recognisers import by_recogniser, check_baseline, open_baseline
from omnikit.evaluate.recipe_checks import check_evaluation
from omnikit.evaluate.text_normalisation import normalizer, normalizer_version
from omnikit.hparams import load_recipe
from omnikit.offline.batches import Respond, by_model
from omnikit.prepare.corpus import Corpus, prepare
from omnikit.tasks import TASKS


def main(corpus: Corpus, splits: Callable[[dict[str, Any]], Sequence[str]], mean_over: str | None = None) -> None:
    """Evaluate speech recognition with the options of a command line and its recipe; write and print the results.

    Args:
        corpus: corpus that is evaluated on.
        splits: function from the recipe's hparams to the names of the splits to be scored.
        mean_over: see `write_report`.

    Raises:
        ValueError: a file, flag, value or the data is unusable; the message is one line for the user.
    """
    recipe = load_recipe(check=check_evaluation)
    hparams = recipe.hparams
    folder = Path(hparams["output_folder"])
    options = {
        "normalize": normalizer(hparams["normalizer"]),
        "groups": {group["name"]: group["ids"] for group in hparams["groups"]},
        "batch_size": hparams["batch_size"],
        "folder": folder,
        "language": hparams["language"],
    }
    wanted, published = splits(hparams), published_figures(hparams)
    respond, name = open_system(hparams, recipe.run_opts.get("device", "cpu"))
    summaries = list(prepare(corpus, hparams["data_folder"], folder / "manifests", wanted))
    results = []
    for summary in summaries:
        print(summary)
        entries = read_manifest(corpus.manifest(folder / "manifests", summary.split), folder / "tables")
        result = evaluate_split(respond, summary.split, entries, **options)
        result.skipped.update(summary.skipped)  # entries skipped when the manifest was written count as well
        results.append(result)
    about = {**name, "normalizer": normalizer_version(hparams["normalizer"])}
    print(write_report(folder, results, about=about, published=published, mean_over=mean_over))


def published_figures(hparams: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the published figures of what is scored; None for a baseline without any, or with other weights."""
    if hparams["baseline"] is None:
        return hparams["published"]
    known = hparams["published_baselines"] or {}
    return known.get(hparams["baseline"]) if hparams["baseline_weights"] is None else None


def open_system(hparams: dict[str, Any], device: str) -> tuple[Respond, dict[str, str]]:
    """Open the system or baseline that a recipe chooses for transcribing.

    Returns:
        The function that transcribes a batch, and the entries that name the system in the results.

    Raises:
        ValueError: the system or baseline does not exist, or both are given.
    """
    baseline, checkpoint = hparams["baseline"], hparams["checkpoint"]
    if baseline is None:
        omni = load(checkpoint, device=device)
        omni.decoding = hparams["decoding"]
        decoder = omni.decoder.with_capacity(hparams["batch_size"])
        name = {"checkpoint": checkpoint or "the shipped mini system"}
        return by_model(decoder, TASKS["A1T1"]), name
    check_baseline(baseline, checkpoint)
    weights = hparams["baseline_weights"]
    name = {"baseline": baseline if weights is None else f"{baseline}, weights {weights}"}
    return by_recogniser(open_baseline(baseline, weights, device), hparams["language"]), name
