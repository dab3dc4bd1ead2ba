"""Intelligibility of speech made from text, judged by another recogniser.

    python evaluate.py hparams/eval.yaml --checkpoint DIR --data_folder DIR --grammar_file FILE.jsgf

writes `tts.json`, `tts.md`, `heard.jsonl` (what the judge heard of each spoken sentence) and some of them as wav.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from omnikit.api import load
from omnikit.data.corpus import prepare
from omnikit.data.rows import Row, read_manifest
from omnikit.errors import bad_input_exits
from omnikit.evaluate.batches import replies
from omnikit.evaluate.intelligibility import Said, judged, keep_wavs, open_judge, rates_table, reference_rates, sound
from omnikit.evaluate.qa import some
from omnikit.evaluate.tables import write_json
from omnikit.hparams import build_part, load_recipe
from omnikit.interfaces import Codec
from omnikit.model import OmniLM
from omnikit.tasks import TASKS

sys.path.append(str(Path(__file__).resolve().parents[2] / "LibriSpeech"))
from prepare import CORPUS

OWN = "the system's codec"


def read_rows(hparams: dict[str, Any], folder: Path) -> list[Row]:
    """The sentences to be spoken, with their recordings."""
    split = hparams["split"]
    for summary in prepare(CORPUS, hparams["data_folder"], folder / "manifests", [split]):
        print(summary)
    rows = [row for row in read_manifest(folder / "manifests" / f"{split}.csv") if re.search(hparams["ids"], row.id)]
    if not rows:
        raise ValueError(f"--ids {hparams['ids']}: found in no utterance id of {split}")
    return some(rows, hparams["limit"])


def open_codecs(own: Codec, wanted: list[dict[str, str]]) -> dict[str, Codec]:
    """The system's codec and others by name, with their weights."""
    codecs = {OWN: own}
    for options in wanted:
        codec = build_part("codec", **options)
        codec.load_weights()
        codecs[options["name"]] = codec.eval()
    return codecs


def speak(model: OmniLM, rows: list[Row], hparams: dict[str, Any]) -> list[Said]:
    """The system reads every row's text."""
    options = {"decoding": hparams["decoding"], "batch_size": hparams["batch_size"]}
    found, skipped = replies(model, TASKS["T1A1"], rows, title="speak", **options)
    if skipped:
        print(f"not spoken: {skipped}")
    return [(row.id, row.t1, sound(model.codec, found[row.id].codes)) for row in rows if row.id in found]


def main() -> None:
    recipe = load_recipe()
    hparams = recipe.hparams
    folder = Path(hparams["output_folder"])
    judge = open_judge(hparams["grammar_file"])
    rows = read_rows(hparams, folder)
    model = load(hparams["checkpoint"], device=recipe.run_opts.get("device", "cpu")).model
    codecs = open_codecs(model.codec, hparams["codecs"])
    said = speak(model, rows, hparams)
    keep_wavs(said, folder / "wav", model.codec.sample_rate, hparams["keep_wavs"])
    if judge is None:
        print(f"{folder / 'wav'}: wavs written; not judged, no --grammar_file is given")
        return
    rates = reference_rates(judge, codecs, [(row.id, row.t1, row.a1) for row in rows], shuffle_with=OWN)
    rates["the system, from text"], heard = judged(judge, said, model.codec.sample_rate, "the system, from text")
    with (folder / "heard.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": p.id, "text": p.reference, "heard": p.hypothesis}) + "\n" for p in heard)
    about = {"checkpoint": hparams["checkpoint"] or "the shipped mini system", "split": hparams["split"]}
    write_json(folder / "tts.json", {**about, "intelligibility": {name: r.as_dict() for name, r in rates.items()}})
    text = f"# Speech from text, {hparams['split']}\n\n{rates_table(rates)}\n"
    (folder / "tts.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    with bad_input_exits():
        main()
