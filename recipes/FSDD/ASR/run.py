"""Leave-one-speaker-out evaluation: trains without each speaker, scores on that speaker, and tabulates the results.

    python run.py --data_folder /data/free-spoken-digit-dataset --from_nothing george
    python run.py --data_folder /data/free-spoken-digit-dataset --ears whisper_base

This writes `table.md` to the output folder and updates it after every speaker. A killed run resumes when the same
command is given again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from omnikit.checkpoint import existing, shipped_systems
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.evaluate.result_tables import markdown_table, percent
from omnikit.files import write_text
from omnikit.llms.tokenizers import SentencePieceTokenizer

sys.path.append(str(Path(__file__).resolve().parents[1]))
from prepare import TEST, check_speakers, speakers

HERE = Path(__file__).resolve().parent
HEADER = ["held out", "encoder from", "strings", "digits", "WER %", "CER %", "strings right %"]
MINI, WHISPER_BASE = "mini", "whisper_base"
"""Choices of `--ears`: the mini encoder, trained on the other speakers, or Whisper base, frozen."""
MINI_WHISPER = "mini_whisper"
"""Name of the shipped system with Whisper base, from which training with it starts if none is given."""
START = "start"
"""Name of the folder of the system that takes its place where it is not installed."""


@dataclass(frozen=True)
class Fold:
    """One fold of the cross-validation: a held-out speaker and the folder that holds its training runs and scores."""

    speaker: str
    folder: Path
    from_nothing: bool = False
    ears: str = MINI

    @property
    def encoder_from(self) -> str:
        """Origin of the encoder's weights before training, for the table."""
        if self.ears == WHISPER_BASE:
            return "Whisper base, frozen"
        return "nothing" if self.from_nothing else "synthetic speech"

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
    made, data, asr = fold.folder.parent / "strings", options.data_folder.resolve(), fold.folder / "asr"
    own = [f"--data_folder={made}", f"--held_out={fold.speaker}"]
    yield (
        made / f"{TEST}{fold.speaker}" / f"{fold.speaker}.parquet",
        ["../prepare.py", "--data_folder", str(data), "--save_folder", str(made), "--held_out", fold.speaker],
    )
    initial, more = yield from (whisper_steps if fold.ears == WHISPER_BASE else encoder_steps)(fold, own, options)
    yield (
        asr / "model.safetensors",
        ["train.py", "hparams/train.yaml", *more, *own, f"--output_folder={asr}", f"--initial_weights={initial}",
         f"--llm.tokenizer={initial / SentencePieceTokenizer.file_name}", *shlex.split(options.train_flags)],
    )  # fmt: skip
    yield (
        fold.scores,
        ["evaluate.py", "hparams/eval.yaml", f"--checkpoint={asr}", f"--data_folder={data}",
         f"--speakers={fold.speaker}", f"--output_folder={fold.scores.parent}", *shlex.split(options.evaluate_flags)],
    )  # fmt: skip


Steps = Generator[tuple[Path, list[str]], None, tuple[Path, list[str]]]
"""The steps before the training of a system; they return its initial checkpoint and its files of overrides."""


def encoder_steps(fold: Fold, own: list[str], options: argparse.Namespace) -> Steps:
    """Yield the training of the mini encoder on the fold's strings of digits."""
    encoder = fold.folder / "encoder"
    more = ["hparams/from_nothing.yaml"] if fold.from_nothing else []
    flags = shlex.split(options.encoder_flags)
    yield (
        encoder / "system" / "model.safetensors",
        ["train_encoder.py", "hparams/encoder.yaml", *more, *own, f"--output_folder={encoder}", *flags],
    )
    return encoder / "system", []


def whisper_steps(fold: Fold, own: list[str], options: argparse.Namespace) -> Steps:
    """Yield the step that builds the system with Whisper base to start from, unless there is one."""
    more, start = ["hparams/whisper_base.yaml"], options.initial_weights
    if start is None and MINI_WHISPER in shipped_systems():
        start = MINI_WHISPER
    if start is not None:
        return existing(start).resolve(), more
    start = fold.folder.parent / START
    yield (
        start / "model.safetensors",
        ["start_system.py", f"--output_folder={start}", *shlex.split(options.encoder_flags)],
    )
    return start, more


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
    """Return a Markdown table of the finished folds, and of the mean without those from nothing."""
    done = [(fold, result) for fold in folds if (result := fold.result()) is not None]
    rows = [
        [fold.speaker, fold.encoder_from, str(r["utterances"]), str(r["words"])]
        + [percent(r[key]) for key in ("wer", "cer", "exact")]
        for fold, r in done
    ]
    usual = [(fold, result) for fold, result in done if not fold.from_nothing]
    if len(usual) > 1:
        means = [percent(fmean(r[key] for _, r in usual)) for key in ("wer", "cer", "exact")]
        rows.append([f"mean of {len(usual)}", usual[0][0].encoder_from, "", "", *means])
    return markdown_table(HEADER, rows) + "\n"


def check_ears(options: argparse.Namespace) -> None:
    """Refuse flags that the chosen encoder does not use.

    Raises:
        ValueError: there are such flags.
    """
    if options.ears == MINI and options.initial_weights is not None:
        raise ValueError(f"--initial_weights {options.initial_weights}: needs --ears {WHISPER_BASE}")
    if options.ears == WHISPER_BASE and options.from_nothing:
        names = " ".join(options.from_nothing)
        raise ValueError(f"--from_nothing {names}: needs --ears {MINI}, since Whisper base is not trained")


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data_folder", type=Path, required=True, metavar="DIR", help="folder of the recordings")
    parser.add_argument(
        "--output_folder", type=Path, metavar="DIR", help="default: results/leave_one_out, with -EARS for other ears"
    )
    parser.add_argument(
        "--ears",
        choices=[MINI, WHISPER_BASE],
        default=MINI,
        help="encoder: mini, trained on the other speakers, or whisper_base, frozen; default: %(default)s",
    )
    parser.add_argument(
        "--initial_weights",
        metavar="DIR",
        help="with --ears whisper_base: system to start from; default: the shipped mini_whisper, or else the mini"
        " system without its encoder and adapter",
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
    check_ears(options)
    if not names:
        raise ValueError(f"--data_folder {options.data_folder}: no recordings <digit>_<speaker>_<index>.wav there")
    own = "results/leave_one_out" + (f"-{options.ears}" if options.ears != MINI else "")
    folder = (options.output_folder or Path(own)).resolve()
    folds = [Fold(name, folder / name, ears=options.ears) for name in names]
    folds += [Fold(name, folder / f"{name}-from-nothing", from_nothing=True) for name in options.from_nothing]
    for fold in folds:
        work(fold, options)
        write_text(folder / "table.md", table(folds))
    print((folder / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    with bad_input_exits():
        main()
