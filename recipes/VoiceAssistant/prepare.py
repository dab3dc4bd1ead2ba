"""Prepares manifests of VoiceAssistant-400K: spoken questions, and answers as text and codes of SNAC at 24 kHz.

    python prepare.py --data_folder /data/VoiceAssistant-400K --save_folder manifests

This writes `train/`, with one Parquet shard for each upstream file that holds the recordings of the questions and the
codes of the answers; docs/data.md explains the fields. Each round is an entry. The rounds of a conversation, which may
be in different shards, have the same `dialog`, and `turn` is their number. Conversations that lack a round, or have one
twice, are counted over all shards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from omnikit.data.find_files import visible
from omnikit.data.manifest_columns import converted, located
from omnikit.prepare.corpus import Corpus, Item, ManifestPart, Remark, command
from omnikit.prepare.corpus_readers import parquet_parts, text_of

CODEC, NUM_CODEBOOKS, CODEBOOK_SIZE = "snac_24khz", 7, 4096
COLUMNS = ("split_name", "index", "round", "question", "question_audio", "answer", "answer_snac")


def splits(data_folder: Path) -> dict[str, Path]:
    """Return the name and folder of each split, such as `train` for files like `train-00000-of-00325.parquet`."""
    for folder in (data_folder, data_folder / "data"):
        found = {path.name.partition("-")[0]: folder for path in sorted(visible(folder, "*-of-*.parquet"))}
        if found:
            return found
    return {}


def parts(split: str, folder: Path) -> list[ManifestPart]:
    files = sorted(visible(folder, f"{split}-*.parquet"))
    return [part for path in files for part in parquet_parts(path, COLUMNS, partial(to_item, folder=folder))]


def to_item(row: dict[str, Any], folder: Path) -> Item | Remark:
    """Convert a row of a published file to a manifest entry, or to a remark if recording or codes cannot be used.

    Args:
        folder: folder to which relative paths of recordings refer.
    """
    dialog = "-".join(converted(part, row[part], "id") for part in ("split_name", "index"))
    item = {"id": f"{dialog}-{converted('round', row['round'], 'id')}", "language": "en", "dialog": dialog}
    item["turn"] = converted("round", row["round"], "turn")
    stored = row["question_audio"]
    recording = None if stored is None else converted("question_audio", stored, "a1")
    if recording is None:
        return Remark("missing", item["id"])
    codes = read_codes(row["answer_snac"])
    if codes is None:
        return Remark("bad codes", item["id"])
    item["a1"] = recording if isinstance(recording, bytes) else located(recording, folder)
    texts = {"t1": text_of(row, "question"), "t2": text_of(row, "answer")}
    return item | texts | {"codes": codes, "codec": CODEC}


def read_codes(codes: str | Sequence[Any] | None) -> np.ndarray | None:
    """Return published SNAC codes as an int16 array [K, T] in the order of `omnikit.codecs.snac`.

    They are given as text `# c m0 f0 f1 m1 f2 f3 # ..`, frame after frame, as a flat list of numbers, or as a list of 7
    numbers per frame.

    Returns:
        None if there is no frame, a frame does not have 7 codes, or a code is outside the codebook.
    """
    if isinstance(codes, str):
        frames = [re.split(r"[\s,]+", frame.strip(" ,\t\n")) for frame in codes.split("#") if frame.strip()]
    else:
        listed = list(codes or ())
        flat = all(isinstance(code, int) for code in listed)
        frames = [listed[at : at + NUM_CODEBOOKS] for at in range(0, len(listed), NUM_CODEBOOKS)] if flat else listed
    try:
        found = np.array(frames, dtype=np.int64)
    except (ValueError, OverflowError, TypeError):
        return None
    if found.ndim != 2 or found.shape[1] != NUM_CODEBOOKS or not found.size:
        return None
    return found.T.astype(np.int16) if 0 <= found.min() and found.max() < CODEBOOK_SIZE else None


CORPUS = Corpus(
    layout="data/<split>-<number>-of-<number>.parquet with split_name, index, round, question, question_audio, answer "
    "and answer_snac",
    fields=("id", "duration", "language", "dialog", "turn", "t1", "a1", "t2", "codes", "codec"),
    splits=splits,
    parts=parts,
    shards=True,
    embedded=True,
    sample_rate=22050,
)

if __name__ == "__main__":
    command(CORPUS, __doc__)
