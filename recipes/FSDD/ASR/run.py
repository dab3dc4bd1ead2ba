"""Leave-one-speaker-out evaluation: trains without each speaker, scores on that speaker, and tabulates the results.

    python run.py --data_folder /data/free-spoken-digit-dataset --from_nothing george

This writes `table.md` to the output folder and updates it after every speaker. A killed run resumes when the same
command is given again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.evaluate.result_tables import markdown_table, percent
from omnikit.files import write_text

sys.path.append(str(Path(__file__).resolve().parents[1]))
from prepare import TEST, check_speakers, speakers

HERE = Path(__file__).resolve().parent
HEADER = ["held out", "encoder from", "strings", "digits", "WER %", "CER %", "strings right %"]


@dataclass(frozen=True)
class Fold:
    """One fold of the cross-validation: a held-out speaker and the folder that holds its training runs and scores."""

    speaker: str
    folder: Path
    from_nothing: bool = False

    @property
    def scores(self) -> Path:
        return self.folder / "scores" / "asr.json"

    def result(self) -> dict[str, Any] | None:
        """Return the error rates on the held-out speaker's digit strings; None if they have not been computed yet."""
        if not self.scores.exists():
            return None
        splits = json.loads(self.scores.read_text(encoding="utf-8"))["splits"]
        return splits[f"{TEST}{self.speaker}"]["groups"]["all"]


def steps(fold: Fold, options: argparse.Namespace) -> Iterator[tuple[Path, list[str]]]:
    """Yield each step of a fold as the file that it writes last, which marks it as done, and its command."""
    made, data = fold.folder.parent / "strings", options.data_folder.resolve()
    encoder, asr = fold.folder / "encoder", fold.folder / "asr"
    own = [f"--data_folder={made}", f"--held_out={fold.speaker}"]
    more = ["hparams/from_nothing.yaml"] if fold.from_nothing else []
    flags = {name: shlex.split(getattr(options, f"{name}_flags")) for name in ("encoder", "train", "evaluate")}
    yield (
        made / f"{TEST}{fold.speaker}" / f"{fold.speaker}.parquet",
        ["../prepare.py", "--data_folder", str(data), "--save_folder", str(made), "--held_out", fold.speaker],
    )
    yield (
        encoder / "system" / "model.safetensors",
        ["train_encoder.py", "hparams/encoder.yaml", *more, *own, f"--output_folder={encoder}", *flags["encoder"]],
    )
    yield (
        asr / "model.safetensors",
        ["train.py", "hparams/train.yaml", *own, f"--output_folder={asr}", f"--initial_weights={encoder / 'system'}",
         *flags["train"]],
    )  # fmt: skip
    yield (
        fold.scores,
        ["evaluate.py", "hparams/eval.yaml", f"--checkpoint={asr}", f"--data_folder={data}",
         f"--speakers={fold.speaker}", f"--output_folder={fold.scores.parent}", *flags["evaluate"]],
    )  # fmt: skip


def work(fold: Fold, options: argparse.Namespace) -> None:
    """Run the remaining steps of a fold: preparation, training of encoder and system, evaluation.

    Raises:
        ValueError: a step has failed; its own output gives the reason.
    """
    for product, words in steps(fold, options):
        if product.exists():
            continue
        print(f"== {fold.folder.name}: {' '.join(words)}", flush=True)
        status = subprocess.run([sys.executable, *words], cwd=HERE).returncode
        if status or not product.exists():
            raise ValueError(f"{fold.folder.name}: {words[0]} failed with status {status}, {product} was not written")


def table(folds: Sequence[Fold]) -> str:
    """Return a Markdown table of the finished folds, and of the mean over those that start from the shipped encoder."""
    done = [(fold, result) for fold in folds if (result := fold.result()) is not None]
    rows = [
        [fold.speaker, "nothing" if fold.from_nothing else "synthetic speech", str(r["utterances"]), str(r["words"])]
        + [percent(r[key]) for key in ("wer", "cer", "exact")]
        for fold, r in done
    ]
    usual = [result for fold, result in done if not fold.from_nothing]
    if len(usual) > 1:
        means = [percent(fmean(r[key] for r in usual)) for key in ("wer", "cer", "exact")]
        rows.append([f"mean of {len(usual)}", "synthetic speech", "", "", *means])
    return markdown_table(HEADER, rows) + "\n"


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data_folder", type=Path, required=True, metavar="DIR", help="folder of the recordings")
    parser.add_argument(
        "--output_folder", type=Path, default=Path("results/leave_one_out"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--speakers", nargs="+", metavar="NAME", help="speakers to hold out, one at a time; default: all"
    )
    parser.add_argument(
        "--from_nothing",
        nargs="+",
        default=[],
        metavar="NAME",
        help="speakers to hold out also in a training whose encoder starts from random weights; default: none",
    )
    for name in ("encoder", "train", "evaluate"):
        parser.add_argument(
            f"--{name}_flags", default="", metavar="TEXT", help="further flags of this step, such as '--seed=2'"
        )
    options = parser.parse_args()
    names = speakers(options.data_folder) if options.speakers is None else options.speakers
    check_speakers("speakers", names, options.data_folder)
    check_speakers("from_nothing", options.from_nothing, options.data_folder)
    if not names:
        raise ValueError(f"--data_folder {options.data_folder}: no recordings <digit>_<speaker>_<index>.wav there")
    folder = options.output_folder.resolve()
    folds = [Fold(name, folder / name) for name in names]
    folds += [Fold(name, folder / f"{name}-from-nothing", from_nothing=True) for name in options.from_nothing]
    for fold in folds:
        work(fold, options)
        write_text(folder / "table.md", table(folds))
    print((folder / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    with bad_input_exits():
        main()
