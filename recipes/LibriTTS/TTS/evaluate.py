"""Evaluates speech synthesis: intelligibility to a speech recogniser, share of truncated answers, and speed.

    python evaluate.py hparams/eval.yaml --checkpoint DIR --data_folder DIR --grammar_file FILE.jsgf

This writes `tts.json`, `tts.md`, `hypotheses.jsonl` (the recogniser's hypothesis for each synthesized sentence) and
some of the sentences as WAV files.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnikit.api import Omni, load
from omnikit.data.manifest_reader import ManifestEntry, read_manifest
from omnikit.data.samples import codec_name
from omnikit.data.skipped import Skipped
from omnikit.errors import bad_input_exits
from omnikit.evaluate.intelligibility import (
    NOT_JUDGED,
    Judge,
    SpeechSet,
    SpokenText,
    judge_all,
    keep_wavs,
    open_judge,
    rates_table,
    reference_speech,
    references,
)
from omnikit.evaluate.mos import mos_scores, mos_table, open_mos
from omnikit.evaluate.qa import some
from omnikit.evaluate.recipe_checks import check_evaluation
from omnikit.evaluate.speed import Speed, measure, speed_table
from omnikit.evaluate.text_normalisation import Normalizer, normalizer
from omnikit.evaluate.wer import ErrorRates
from omnikit.files import whole_text, write_json, write_text
from omnikit.hparams import build_part, load_recipe
from omnikit.interfaces import Codec
from omnikit.model import OmniLM
from omnikit.offline.batches import cut_short, replies, sound
from omnikit.tasks import TASKS

OWN = "the system's codec"
SYSTEM = "the system, from text"
SPEAK = TASKS["T1A1"]


def read_entries(hparams: dict[str, Any]) -> list[ManifestEntry]:
    """Return the manifest entries whose texts are synthesized, selected by `ids` and `limit`.

    Raises:
        ValueError: no id of the manifest matches `ids`.
    """
    manifest, ids = hparams["manifest"], hparams["ids"]
    entries = read_manifest(manifest, Path(hparams["cache_folder"]) / "tables")
    wanted = [entry for entry in entries if re.search(ids, entry.id)] if ids else entries
    if not wanted:
        raise ValueError(f"--ids {ids}: found in no utterance id of {manifest}")
    return some(wanted, hparams["limit"])


def open_codecs(own: Codec, wanted: list[dict[str, str]]) -> dict[str, Codec]:
    """Return the system's codec and the further codecs of the recipe by name, with their weights loaded."""
    codecs = {OWN: own}
    for options in wanted:
        codec = build_part("codec", **options)
        codec.load_weights()
        codecs[options["name"]] = codec.eval()
    return codecs


@dataclass(frozen=True)
class SpokenTexts:
    """The utterances that a system synthesized from texts, the share of truncated ones, and the skipped texts."""

    utterances: list[SpokenText]
    truncated_percent: float  # percentage of utterances that were truncated at a limit
    skipped: Skipped


def speak(model: OmniLM, entries: list[ManifestEntry], hparams: dict[str, Any]) -> SpokenTexts:
    """Synthesize the transcript of every entry with the system.

    Raises:
        ValueError: no text can be synthesized.
    """
    options = {"decoding": hparams["decoding"], "batch_size": hparams["batch_size"]}
    found, skipped = replies(model, SPEAK, entries, title="speak", **options)
    if not found:
        raise ValueError(f"--manifest {hparams['manifest']}: no text could be synthesized; skipped: {skipped}")
    utterances = [
        SpokenText(
            entry.id,
            entry.t1,
            sound(model.codec, found[entry.id].codes),
            entry.language or hparams["language"] or "",
        )
        for entry in entries
        if entry.id in found
    ]
    cut = sum(cut_short(reply, SPEAK) for reply in found.values())
    return SpokenTexts(utterances, 100 * cut / len(found), skipped)


def intelligibility(
    judge: Judge, speech: dict[str, SpeechSet], normalize: Normalizer, folder: Path
) -> dict[str, ErrorRates]:
    """Return the judge's error rates on recordings, decoded codes and the system's speech, by title.

    The hypotheses for the system's speech are also written to `hypotheses.jsonl`.
    """
    found = judge_all(judge, speech, normalize)
    with whole_text(folder / "hypotheses.jsonl") as file:
        for pair in found[SYSTEM][1]:
            file.write(json.dumps({"id": pair.id, "text": pair.reference, "hypothesis": pair.hypothesis}) + "\n")
    return {title: rates for title, (rates, _) in found.items()}


def speed(omni: Omni, utterances: list[SpokenText], hparams: dict[str, Any]) -> dict[str, Speed | None]:
    """Return the speed of streaming synthesis, measured on the first texts; {} if `speed_sentences` is 0."""
    texts = [each.text for each in utterances[: hparams["speed_sentences"]]]
    if not texts:
        return {}
    omni.decoding = hparams["decoding"]
    options = {"sample_rate": omni.sample_rate, "threads": hparams["speed_threads"]}
    return {SYSTEM: measure(omni.stream_speech, texts, **options)}


def main() -> None:
    recipe = load_recipe(check=check_evaluation)
    hparams = recipe.hparams
    folder, device = Path(hparams["output_folder"]), recipe.run_opts.get("device", "cpu")
    judge = open_judge(hparams["judge"], hparams["grammar_file"], hparams["judge_weights"], device)
    mos = open_mos(hparams["mos"], hparams["mos_source"], device)
    entries = read_entries(hparams)
    omni = load(hparams["checkpoint"], device=device)
    codecs = open_codecs(omni.model.codec, hparams["codecs"])
    spoken = speak(omni.model, entries, hparams)
    keep_wavs(spoken.utterances, folder / "wav", omni.sample_rate, hparams["keep_wavs"])
    speech = reference_speech(
        codecs, references(entries, SPEAK, codec_name(omni.model), hparams["language"] or ""), own=OWN
    )
    speech[SYSTEM] = SpeechSet(omni.sample_rate, lambda: spoken.utterances)
    normalize = normalizer(hparams["judge_normalizer"])
    rates = {} if judge is None else intelligibility(judge, speech, normalize, folder)
    found = mos_scores(mos, speech)
    measured = speed(omni, spoken.utterances, hparams)
    about = {
        "checkpoint": hparams["checkpoint"] or "the shipped mini system",
        "manifest": hparams["manifest"],
        "judge": hparams["judge"],
        "truncated_percent": round(spoken.truncated_percent, 4),
    }
    write_json(folder / "tts.json", {
        **about,
        "skipped": dict(spoken.skipped.reasons),
        "intelligibility": {name: r.as_dict() for name, r in rates.items()},
        "mos": {name: o.as_dict() for name, o in found.items()},
        "speed": {name: s and s.as_dict() for name, s in measured.items()},
    })  # fmt: skip
    notes = "\n".join([*(f"- {key}: {value}" for key, value in about.items()), f"- skipped: {spoken.skipped}"])
    tables = [rates_table(rates) if rates else NOT_JUDGED]
    tables += [mos_table(found)] if found else []
    tables += [speed_table(measured)] if measured else []
    text = "\n\n".join([f"# Speech from text, {Path(hparams['manifest']).stem}", *tables, notes]) + "\n"
    write_text(folder / "tts.md", text)
    print(text)


if __name__ == "__main__":
    with bad_input_exits():
        main()
