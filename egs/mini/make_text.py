"""Make the text on which the mini backbone is pre-trained: written questions with answers, and sentences to repeat.

    python make_text.py --data_folder data

gives `<data_folder>/qa/text.parquet` (id, t1, t2, kind). Repeating is an instruction of its own (`repeat ..`), which no
recording says: a language model that can copy its prompt is what the later stages teach to hear and to speak. No
sentence of the corpus' dev and test splits, which must be there already, is among them.
"""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import world

from omnikit.data.find_files import visible
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.files import whole_file
from omnikit.option_ranges import SEED

QUESTION_ROUNDS = 20
SENTENCES = 12000


def evaluated(corpus: Path) -> set[str]:
    """The texts of a corpus' dev and test splits.

    Raises:
        ValueError: there are none.
    """
    files = [file for kind in ("dev", "test") for file in visible(corpus, f"{kind}-*/*/*/*.trans.txt")]
    if not files:
        raise ValueError(f"--data_folder: no dev and test splits in {corpus}; make_corpus.py makes them")
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return {line.split(" ", 1)[1].lower() for line in lines}


def rows(seed: int, left_out: set[str]) -> list[dict[str, str]]:
    """Known questions and sentences, held-out sums and the texts `left_out` nowhere among them."""
    rng = random.Random(seed)
    pairs = [(q.text, q.answer, q.kind) for q in world.known_questions()] * QUESTION_ROUNDS
    sentences = [world.template_sentence(rng) for _ in range(SENTENCES // 2)]
    sentences += [world.random_words(rng) for _ in range(SENTENCES // 2)]
    pairs += [(f"repeat {s}", s, "repeat") for s in sentences if not world.mentions_sum(s) and s not in left_out]
    rng.shuffle(pairs)
    return [{"id": f"text-{i:05d}", "t1": t1, "t2": t2, "kind": kind} for i, (t1, t2, kind) in enumerate(pairs)]


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data_folder", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--seed", type=SEED, default=1)
    with bad_input_exits():
        arguments = parser.parse_args()
        target = arguments.data_folder / "qa" / "text.parquet"
        made = rows(arguments.seed, evaluated(arguments.data_folder / "corpus"))
        with whole_file(target) as aside:
            pq.write_table(pa.Table.from_pylist(made), aside)
        print(f"{target}: {len(made)} rows")
