"""Exports a trained mini system as one that comes with the package: its checkpoint, and a card with its figures.

    python export_system.py --results results --output_folder ../../omnikit/pretrained/mini
    python export_system.py --results results/whisper_base --output_folder ../../omnikit/pretrained/mini_whisper

All figures of the card are read from the results of `run.sh`, and those of real speakers from `RESULTS/fsdd`, which
this command in `recipes/FSDD/ASR` writes. Results of another checkpoint are refused.

    python evaluate.py hparams/eval.yaml --checkpoint RESULTS/anneal --data_folder DIR --output_folder RESULTS/fsdd
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import followups
from stages import trained_stages

from omnikit import checkpoint
from omnikit.describe import parts_of
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.evaluate.result_tables import markdown_table, percent
from omnikit.files import read_text, whole_folder, write_text
from omnikit.hparams.yaml_tree import read_tree
from omnikit.interfaces import count_parameters
from omnikit.model import OmniLM
from omnikit.train.brain import LOG
from omnikit.train.plot_curves import read_log

HERE = Path(__file__).resolve().parent
SCORES = ("asr", "qa", "tts", "dialogs")
"""Results of `run.sh` that a card needs."""
FSDD = "fsdd"
"""Name of the folder of results that has the figures of real speakers, which may be missing."""
CARD = """# {name}

The system `{name}` of omnikit: `--checkpoint {name}`, `omnikit.load("{name}")`. Speech in, text and speech out, in
conversations, within a closed world of {words} words (sums, days, colours, capitals, opposites, greetings, and what the
user said before). `egs/mini/export_system.py` has written this folder.

| part | name | parameters |
| --- | --- | ---: |
{parts}

{weights}

## Training

`egs/mini/run.sh{flags} --seed {seed}`, on synthetic speech of espeak-ng alone. Optimiser steps: {steps}.{note}
No human voice was heard in training{but}.

## Figures

Measured by the same script; [egs/mini](../../../egs/mini/README.md) describes the data. All figures in %.

{figures}

## Licence

The weights in this folder have the licence of omnikit, Apache 2.0.{licence}
"""
OWN = "`model.safetensors` holds all of its weights; it needs no others."
PUBLIC = """Not in this folder are the weights of the encoder, those of openai-whisper's `{name}`
(arXiv 2212.04356) with the fingerprint `{fingerprint}`. openai-whisper fetches
them when the system is first loaded (to `~/.cache/whisper`). Without a network, give the file,
`--encoder.weights {name}.pt`, or the folder that holds it, `OMNIKIT_WEIGHTS=DIR`. Any other weights are refused
([docs/swap.md](../../../docs/swap.md#public-weights))."""
WHISPER_LICENCE = " Those of Whisper are published by OpenAI under the MIT licence."


def read_scores(results: Path) -> dict[str, dict]:
    """Return the results of the evaluations by name, those of real speakers only if they exist.

    Raises:
        ValueError: results are missing, or are those of another checkpoint.
    """
    found = {}
    for name in (*SCORES, FSDD):
        file = results / name / f"{'asr' if name == FSDD else name}.json"
        if not file.is_file():
            if name == FSDD:
                continue
            raise ValueError(f"{file}: no such results; run.sh --stage 10 computes them")
        found[name] = json.loads(read_text(file))
        scored = found[name]["checkpoint"]
        trained = trained_stages(results)[-1]
        if Path(scored).resolve() != trained.resolve():
            raise ValueError(f"{file}: figures of the checkpoint {scored}, not of {trained}")
    return found


def part_rows(model: OmniLM, folder: Path) -> list[str]:
    """Return the lines of the table of parts, with the numbers of their parameters."""
    names = parts_of(folder)
    rows = [[kind, names.get(kind, ""), f"{count_parameters(part):,}"] for kind, part in model.parts().items()]
    rows.append(["all", "", f"{count_parameters(model):,}"])
    return markdown_table(["part", "name", "parameters"], rows).splitlines()[2:]


def figures(scores: dict[str, dict]) -> Iterator[str]:
    """Yield the tables of a card, each with its title."""
    asr, qa, tts, dialogs = (scores[name] for name in SCORES)
    yield _table("Recognition, word error rate", ["split", "utterances", "word errors"], _recognition(asr))
    yield _table("Answers with the right text", *_questions(qa))
    header = ["speech", "utterances", "word errors of the judge"]
    rows = [
        [f"{title}: {name}", str(rates["utterances"]), percent(rates["wer"])]
        for title, result in (("texts", tts), ("answers", qa))
        for name, rates in (result["intelligibility"] or {}).items()
    ]
    yield _table(f"Intelligibility, judged by {qa['judge']}", header, rows)
    header = ["split, answered as", "asked", "right", "without the turns before", "most frequent answer"]
    header.append("interrupted: right by the part heard (asked)")
    yield _table("Follow-up questions in conversations", header, _dialogs(dialogs))
    if FSDD in scores:
        title = "Strings of spoken digits of real people (FSDD), word error rate, none of it trained on"
        yield _table(title, ["speaker", "all strings", "single digits"], _speakers(scores[FSDD]))
    else:
        yield "Speech of real people: not measured."


def _table(title: str, header: list[str], rows: list[list[str]]) -> str:
    return f"{title}:\n\n{markdown_table(header, rows)}"


def _recognition(asr: dict) -> list[list[str]]:
    return [
        [f"{split}, {group}", str(rates["utterances"]), percent(rates["wer"])]
        for split, result in asr["splits"].items()
        if split.startswith("test")
        for group, rates in result["groups"].items()
    ]


def _questions(qa: dict) -> tuple[list[str], list[list[str]]]:
    modes = list(dict.fromkeys(mode for ways in qa["splits"].values() for mode in ways))
    rows = []
    for split, ways in qa["splits"].items():
        asked = max(way["asked"] for way in ways.values())
        rows.append([split, str(asked), *(percent(ways[m]["percent"]) if m in ways else "-" for m in modes)])
    return ["questions", "asked", *(mode.replace("_", " ") for mode in modes)], rows


def _dialogs(dialogs: dict) -> list[list[str]]:
    rows = []
    for split, ways in dialogs["splits"].items():
        for mode, way in ways.items():
            scores = way["follow_ups"]
            shares = [percent(scores[name]["percent"]) for name in ("history", "alone", "frequent_of_text")]
            crop = scores["cropped"]
            heard = f"{percent(crop['percent'])} ({crop['asked']})"
            rows.append([f"{split}, {mode.replace('_', ' ')}", str(scores["history"]["asked"]), *shares, heard])
    return rows


def _speakers(fsdd: dict) -> list[list[str]]:
    rows = [
        [split.removeprefix("test-"), *(percent(result["groups"].get(g, {}).get("wer")) for g in ("all", DIGITS))]
        for split, result in fsdd["splits"].items()
    ]
    means = fsdd.get("means", {})
    if means:
        means_row = [percent(means.get(group, {}).get("wer")) for group in ("all", DIGITS)]
        rows.append([f"mean of {means['all']['splits']}", *means_row])
    return rows


DIGITS = "single digits"
"""Name of the group of recordings with one digit, see recipes/FSDD/ASR/hparams/eval.yaml."""


def card(name: str, results: Path, flags: str = "", note: str = "") -> str:
    """Return the card of the system that a run of `run.sh` has trained.

    Args:
        flags: further flags of `run.sh` that the card names.
        note: further sentences about the training, such as what was done besides.

    Raises:
        ValueError: a result is missing or is one of another checkpoint, or the checkpoint cannot be read.
    """
    stages, scores = trained_stages(results), read_scores(results)
    folder = stages[-1]
    model = checkpoint.outline(folder)
    public = getattr(model.encoder, "public", None)
    steps = [f"{read_log(stage / LOG)[-1]['step']} ({stage.name})" for stage in stages]
    weights = OWN if public is None else PUBLIC.format(name=public.name, fingerprint=public.fingerprint)
    return CARD.format(
        name=name, words=len(followups.vocabulary()), parts="\n".join(part_rows(model, folder)), weights=weights,
        flags=("" if public is None else " --ears whisper_base") + (f" {flags}" if flags else ""),
        seed=read_tree(folder / "hyperparams.yaml")["seed"], steps=", ".join(steps),
        note=note and f"\n{note}",
        but="" if public is None else " but those that Whisper was trained on",
        figures="\n\n".join(figures(scores)), licence="" if public is None else WHISPER_LICENCE,
    )  # fmt: skip


def export(results: Path, output_folder: Path, flags: str = "", note: str = "") -> None:
    """Write the checkpoint of the last stage and its card to a folder, which is complete or as before."""
    text = card(output_folder.name, results, flags, note)
    stage = trained_stages(results)[-1]
    files = [checkpoint.HPARAMS, checkpoint.FILE_NAME]
    files += [file.name for file in stage.glob("tokenizer*") if file.is_file()]
    with whole_folder(output_folder) as aside:
        for file in files:
            shutil.copyfile(stage / file, aside / file)
        write_text(aside / "README.md", text)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--output_folder", type=Path, required=True, metavar="DIR", help="folder named like the system")
    parser.add_argument("--flags", default="", help="further flags of run.sh that the card names, as '--device cuda'")
    parser.add_argument("--note", default="", metavar="TEXT", help="further sentences of the card about the training")
    options = parser.parse_args()
    export(options.results.resolve(), options.output_folder.resolve(), options.flags, options.note)
    print(read_text(options.output_folder / "README.md"))


if __name__ == "__main__":
    with bad_input_exits():
        main()
