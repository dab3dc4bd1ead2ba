"""Writes the text for training the mini backbone: written questions, dialogs, and sentences to repeat.

    python make_text.py --data_folder data

This writes `<data_folder>/qa/text.parquet` (id, t1, t2, kind, dialog, turn; the last two are null outside of dialogs).
Repetition is a separate instruction (`repeat ..`) that occurs in no recording; it teaches the language model to copy
its prompt, on which the later stages build. Dialogs that begin with it go on with questions about the answer. It can be
any text, so that it has to be looked up in the history and is not known by heart. Sentences of the corpus' dev and test
splits, which must exist already, are excluded, and so are held-out cases of follow-ups.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import dialog_plan
import pyarrow as pa
import pyarrow.parquet as pq
import spoken_texts
import world
from dialog_plan import DialogTurn

from omnikit.data.find_files import visible
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.files import whole_file
from omnikit.option_ranges import SEED

QUESTION_ROUNDS = 20  # number of times that each question is used
SENTENCES = 12000  # sentences to repeat
SPOKEN = 3000  # texts to repeat as people say them: strings of digits and other words, lists, begun sentences
DIALOGS = 30000  # dialogs like those of the corpus
REPEATING = 16000  # dialogs that begin with a text to repeat
COUNTING_SHARE = 0.25  # share of these in which the text is a part of a list, and the next or former word is asked for
COUNTED = (1, 2, 4)  # numbers of words of such a part; not 3, as in the answers of `followups`
SCHEMA = pa.schema(
    {"id": pa.string(), "t1": pa.string(), "t2": pa.string(), "kind": pa.string(), "dialog": pa.string()}
    | {"turn": pa.int32()}
)


def evaluated(corpus: Path) -> set[str]:
    """Return the transcripts of a corpus' dev and test splits.

    Raises:
        ValueError: the corpus has no such splits.
    """
    files = [file for kind in ("dev", "test") for file in visible(corpus, f"{kind}-*/*/*/*.trans.txt")]
    if not files:
        raise ValueError(f"--data_folder: no dev and test splits in {corpus}; make_corpus.py makes them")
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return {line.split(" ", 1)[1].lower() for line in lines}


def rows(seed: int, left_out: set[str]) -> list[dict[str, Any]]:
    """Return the entries of the text corpus in random order; the turns of a dialog follow each other.

    Sentences with held-out sums and those in `left_out` are excluded; texts of few words recur in all splits.
    """
    rng = random.Random(seed)
    pairs = [(q.text, q.answer, q.kind) for q in world.known_questions()] * QUESTION_ROUNDS
    sentences = [world.template_sentence(rng) for _ in range(SENTENCES // 2)]
    sentences += [world.random_words(rng) for _ in range(SENTENCES // 2)]
    sentences = [s for s in sentences if s not in left_out]
    spoken = [spoken_texts.draw(rng).text for _ in range(SPOKEN)]
    sentences += [s for s in spoken if s not in left_out or spoken_texts.recurs(s)]
    sentences = [s for s in sentences if not world.mentions_sum(s)]
    pairs += [(f"repeat {s}", s, "repeat") for s in sentences]
    written: list[list[dict[str, Any]]] = [[{"t1": t1, "t2": t2, "kind": kind}] for t1, t2, kind in pairs]
    dialogs = dialog_plan.draw_dialogs(rng, DIALOGS)
    dialogs += [_about_repeated(sentences, rng) for _ in range(REPEATING)]
    written += [dialog_plan.written(f"text-{i:05d}", turns) for i, turns in enumerate(dialogs)]
    rng.shuffle(written)
    return [{**row, "id": f"text-{i:05d}"} for i, row in enumerate(row for part in written for row in part)]


def _about_repeated(sentences: list[str], rng: random.Random) -> list[DialogTurn]:
    """Return a random dialog of two turns: a sentence or a part of a list to repeat, and a follow-up."""
    text = rng.choice(sentences)
    if rng.random() < COUNTING_SHARE:
        text, choices = _part_of_a_list(rng)
    else:
        choices = [("say that again", text), ("what did you say", text), *[("are you sure", f"yes {text}")] * 2]
        choices.append(("what did i ask", f"you asked repeat {text}"))
    question, answer = rng.choice(choices)
    return [DialogTurn(f"repeat {text}", text, "repeat"), DialogTurn(question, answer, "repeat")]


def _part_of_a_list(rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """Return successive numbers or days as text, and the questions for the word after and before it, with answers."""
    values = rng.choice((world.NUMBERS, world.NUMBERS, world.DAYS * 2))
    count = rng.choice(COUNTED)
    start = rng.randrange(1, len(values) - count)
    text = " ".join(values[start : start + count])
    return text, [("the next one", values[start + count]), ("and the one before", values[start - 1])]


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data_folder", type=Path, default=Path(__file__).parent / "data", help="default: %(default)s"
    )
    parser.add_argument("--seed", type=SEED, default=1, help="seed of sentences and order; default: %(default)s")
    with bad_input_exits():
        arguments = parser.parse_args()
        target = arguments.data_folder / "qa" / "text.parquet"
        made = rows(arguments.seed, evaluated(arguments.data_folder / "corpus"))
        with whole_file(target) as aside:
            pq.write_table(pa.Table.from_pylist(made, SCHEMA), aside)
        print(f"{target}: {len(made)} entries")
