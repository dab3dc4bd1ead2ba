"""Evaluate speech recognition: transcribe the splits of a corpus, compute error rates and write result files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from omnikit.data.manifest_reader import ManifestEntry
from omnikit.data.skipped import Skipped
from omnikit.evaluate.result_tables import markdown_table, percent
from omnikit.evaluate.text_normalisation import Normalizer, of_language
from omnikit.evaluate.wer import ErrorRates, Pair, remarks, score
from omnikit.files import whole_text, write_json, write_text
from omnikit.offline.batches import Respond, gather
from omnikit.tasks import TASKS

ALL = "all"
"""Name of the group that holds every utterance of a split."""
RATES = ("wer", "wer_utterance_mean", "cer", "cer_utterance_mean", "exact")
"""Names of the rates whose means over splits are reported."""


@dataclass(frozen=True)
class SplitResult:
    """Error rates of speech recognition on one split of a corpus, and the entries that were skipped."""

    split: str
    rates: dict[str, ErrorRates]  # group -> its rates; `all` comes first
    skipped: Skipped


def evaluate_split(
    respond: Respond,
    split: str,
    entries: Sequence[ManifestEntry],
    *,
    batch_size: int,
    normalize: Normalizer,
    groups: Mapping[str, str],
    folder: Path,
    language: str | None = None,
) -> SplitResult:
    """Transcribe and score a split, and write `wer_<split>.txt` and `hypotheses_<split>.jsonl` to a folder.

    Args:
        respond: function by which a system or a baseline transcribes a batch, see `by_model` and `by_recogniser`.
        split: name of the split.
        entries: manifest entries of the split.
        batch_size: number of recordings that are transcribed together.
        normalize: text normalisation of references and hypotheses.
        groups: name of a group -> regular expression; the utterances whose ids match are also scored separately.
        folder: existing folder for the files.
        language: language of the entries that name none; None = unknown.

    Raises:
        ValueError: no recording of the split can be read.
    """
    found, skipped = gather(respond, TASKS["A1T1"], entries, batch_size=batch_size, title=split)
    if not found:
        raise ValueError(f"--splits {split}: no recording could be read; skipped: {skipped}")
    pairs = [
        Pair(entry.id, entry.t1, found[entry.id].text, entry.language or language or "")
        for entry in entries
        if entry.id in found
    ]
    _write_hypotheses(folder / f"hypotheses_{split}.jsonl", pairs, normalize)
    rates = {ALL: score(pairs, normalize, alignments=folder / f"wer_{split}.txt")}
    for name, pattern in groups.items():
        members = [pair for pair in pairs if re.search(pattern, pair.id)]
        if members:
            rates[name] = score(members, normalize)
    return SplitResult(split, rates, skipped)


def _write_hypotheses(path: Path, pairs: list[Pair], normalize: Normalizer) -> None:
    with whole_text(path) as file:
        for pair in pairs:
            own = of_language(normalize, pair.language)
            entry = {
                "id": pair.id,
                "reference": pair.reference,
                "hypothesis": pair.hypothesis,
                "reference_normalized": own(pair.reference),
                "hypothesis_normalized": own(pair.hypothesis),
            }
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def published_wer(result: SplitResult, published: Mapping[str, Any] | None) -> float | None:
    """Return the published word error rate of a split in percent; None if there is none for exactly these utterances.

    A mini corpus has splits of the same names, so the number of utterances has to agree as well.

    Args:
        result: result of the split.
        published: split -> `{wer, utterances}`.
    """
    figures = (published or {}).get(result.split)
    if figures is None or figures["utterances"] != result.rates[ALL].utterances:
        return None
    return figures["wer"]


def write_report(
    folder: Path,
    results: Sequence[SplitResult],
    *,
    about: Mapping[str, Any],
    published: Mapping[str, Any] | None,
    mean_over: str | None = None,
) -> str:
    """Write the results of speech recognition to `asr.json` and `asr.md` in a folder, and return the Markdown.

    Args:
        folder: existing folder for the files.
        results: results of each split.
        about: what the figures were measured with (checkpoint, normalizer ..), which is written next to them.
        published: split -> `{wer, utterances}` as published.
        mean_over: what the splits are, such as `speakers`, if the means of their rates are wanted, each split counting
            the same; None = no means.
    """
    splits = {
        r.split: {
            "groups": {name: rates.as_dict() for name, rates in r.rates.items()},
            "skipped": dict(r.skipped.reasons),
            "published_wer": published_wer(r, published),
        }
        for r in results
    }
    means = mean_rates(results) if mean_over is not None and len(results) > 1 else {}
    write_json(folder / "asr.json", {**about, "splits": splits, **({"means": means} if means else {})})
    titled = {_mean_title(group, each, mean_over): each for group, each in means.items()}
    text = _markdown(results, about, published, titled)
    write_text(folder / "asr.md", text)
    return text


def mean_rates(results: Sequence[SplitResult]) -> dict[str, dict[str, float | None]]:
    """Return the means of error rates over splits, and their number, for each group of utterances in at least two."""
    found = {}
    for group in dict.fromkeys(group for result in results for group in result.rates):
        rates = [result.rates[group].as_dict() for result in results if group in result.rates]
        if len(rates) > 1:
            found[group] = {"splits": len(rates), **{key: _mean([each[key] for each in rates]) for key in RATES}}
    return found


def _mean(rates: list[float | None]) -> float | None:
    """Return the mean of rates; None if one of them is missing."""
    return None if None in rates else round(fmean(rates), 4)


def _mean_title(group: str, mean: Mapping[str, float], mean_over: str) -> str:
    return f"mean of {mean['splits']:.0f} {mean_over}" + ("" if group == ALL else f", {group}")


def _markdown(
    results: Sequence[SplitResult],
    about: Mapping[str, Any],
    published: Mapping[str, Any] | None,
    means: Mapping[str, dict[str, float]],
) -> str:
    beside = any(published_wer(r, published) is not None for r in results)
    header = ["Split", "Utterances", "WER %", "CER %", "ins / del / sub", "WER %, mean of utterances"]
    header += ["CER %, mean of utterances"] + (["Published WER %"] if beside else [])
    rows = []
    for result in results:
        for group, r in result.rates.items():
            row = [result.split if group == ALL else f"{result.split}, {group}", str(r.utterances)]
            shown = r.as_dict()
            row += [percent(shown["wer"]), percent(r.cer), f"{r.insertions} / {r.deletions} / {r.substitutions}"]
            row += [percent(shown["wer_utterance_mean"]), percent(r.cer_utterance_mean)]
            known = published_wer(result, published) if group == ALL else None
            rows.append(row + ([percent(known)] if beside else []))
    for title, mean in means.items():
        row = [title, "", percent(mean["wer"]), percent(mean["cer"]), ""]
        row += [percent(mean["wer_utterance_mean"]), percent(mean["cer_utterance_mean"])]
        rows.append(row + ([""] if beside else []))
    notes = [f"- {key}: {value}" for key, value in about.items()]
    notes += [f"- {r.split}, skipped: {r.skipped}" for r in results]
    notes += [f"- {r.split}, {remark}" for r in results for remark in remarks(r.rates[ALL])]
    return "\n".join(["# Speech recognition", "", markdown_table(header, rows), "", *notes, ""])
