"""Trains the sentencepiece model of the mini backbone, in which every word of the closed domain is one piece.

    python train_tokenizer.py --output_folder pretrained/llm
"""

from __future__ import annotations

import io
import random
import string
import tempfile
from pathlib import Path

import dialog_plan
import followups
import sentencepiece
import world

from omnikit.errors import ArgumentParser, bad_input_exits, full_disk_names
from omnikit.files import write_bytes
from omnikit.option_ranges import SEED

PUNCTUATION = ".,;:?!\"'-"
SENTENCES, DIALOGS = 20000, 2000
VOCABULARY = 512


def normalisation(path: Path) -> None:
    """Write the tokenizer's normalisation rules: upper case becomes lower case, and punctuation is removed."""
    rules = [(ord(a), f"{ord(b):X}") for a, b in zip(string.ascii_uppercase, string.ascii_lowercase, strict=True)]
    rules += [(ord(mark), "") for mark in PUNCTUATION]
    path.write_text("".join(f"{source:X}\t{target}\n" for source, target in rules), encoding="utf-8")


def sentences(seed: int) -> list[str]:
    """Return random sentences and dialogs of the closed domain as training text, with every word and letter."""
    rng = random.Random(seed)
    drawn = [world.template_sentence(rng) for _ in range(SENTENCES // 2)]
    drawn += [world.random_words(rng) for _ in range(SENTENCES // 2)]
    turns = [turn for dialog in dialog_plan.draw_dialogs(rng, DIALOGS) for turn in dialog]
    drawn += [text for turn in turns for text in (turn.text, turn.answer)]
    return [*drawn, *(word for word in followups.vocabulary() for _ in range(20)), *string.ascii_lowercase]


def train(folder: Path, seed: int = 1) -> Path:
    """Train the tokenizer, write it to `tokenizer.model` in a folder, and return the path.

    Raises:
        ValueError: a word of the vocabulary is split into several pieces.
    """
    made = io.BytesIO()
    with tempfile.TemporaryDirectory() as scratch:
        rules = Path(scratch) / "rules.tsv"
        normalisation(rules)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences(seed)),
            model_writer=made,  # sentencepiece reports no error if it cannot write a file itself
            model_type="bpe",
            vocab_size=VOCABULARY,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_tsv=str(rules),
            minloglevel=2,
        )
    file = folder / "tokenizer.model"
    write_bytes(file, made.getbuffer())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    split = [word for word in followups.vocabulary() if len(processor.encode(word)) > 1]
    if split:
        raise ValueError(f"{file}: {len(split)} words are not one piece: {', '.join(split[:5])}")
    print(f"{file}: {processor.vocab_size()} pieces, {len(followups.vocabulary())} words of one piece each")
    return file


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output_folder",
        type=Path,
        default=Path(__file__).parent / "pretrained" / "llm",
        help="folder for tokenizer.model; default: %(default)s",
    )
    parser.add_argument("--seed", type=SEED, default=1, help="seed of the training text; default: %(default)s")
    with bad_input_exits():
        arguments = parser.parse_args()
        with full_disk_names(arguments.output_folder):
            train(arguments.output_folder, arguments.seed)
