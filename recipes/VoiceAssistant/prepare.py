"""Manifests of VoiceAssistant-400K: spoken questions, and answers as text and codes of SNAC at 24 kHz.

    python prepare.py --data_folder /data/VoiceAssistant-400K --save_folder manifests

writes `train/`, one Parquet shard for each upstream file, with the question's recording and the answer's codes in it;
docs/data.md says what stands in a manifest. Each round of a conversation is a row of its own, as published.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from omnikit.data.corpus import Corpus, Item, Part, Remark, command
from omnikit.data.folders import visible
from omnikit.data.upstream import parquet_parts

CODEC, NUM_CODEBOOKS, CODEBOOK_SIZE = "snac_24khz", 7, 4096
COLUMNS = ("split_name", "index", "round", "question", "question_audio.bytes", "answer", "answer_snac")


def splits(data_folder: Path) -> dict[str, Path]:
    """`train` of `train-00000-of-00325.parquet` .."""
    for folder in (data_folder, data_folder / "data"):
        found = {path.name.partition("-")[0]: folder for path in sorted(visible(folder, "*-of-*.parquet"))}
        if found:
            return found
    return {}


def parts(split: str, folder: Path) -> list[Part]:
    return [
        part for path in sorted(visible(folder, f"{split}-*.parquet")) for part in parquet_parts(path, COLUMNS, to_item)
    ]


def to_item(row: dict[str, Any]) -> Item | Remark:
    name = "-".join(str(row[part]) for part in ("split_name", "index", "round"))
    recording = (row["question_audio"] or {}).get("bytes")
    if recording is None:
        return Remark("missing", name)
    codes = read_codes(row["answer_snac"] or "")
    if codes is None:
        return Remark("bad codes", name)
    question, answer = ((row[text] or "").strip() for text in ("question", "answer"))
    return {"id": name, "language": "en", "t1": question, "a1": recording, "t2": answer, "codes": codes, "codec": CODEC}


def read_codes(text: str) -> np.ndarray | None:
    """`# c m0 f0 f1 m1 f2 f3 # ..`, frame after frame -> int16 [K, T] in the order of `omnikit.codecs.snac`.

    None where there is no frame, a frame has not 7 codes, or a code is outside the codebook.
    """
    frames = [frame.split() for frame in text.split("#") if frame.strip()]
    if not frames or any(len(frame) != NUM_CODEBOOKS for frame in frames):
        return None
    try:
        codes = np.array(frames, dtype=np.int64).T
    except (ValueError, OverflowError):
        return None
    return codes.astype(np.int16) if 0 <= codes.min() and codes.max() < CODEBOOK_SIZE else None


CORPUS = Corpus(
    layout="data/<split>-<number>-of-<number>.parquet with split_name, index, round, question, question_audio, answer "
    "and answer_snac",
    fields=("id", "duration", "language", "t1", "a1", "t2", "codes", "codec"),
    splits=splits,
    parts=parts,
    shards=True,
    embedded=True,
    sample_rate=22050,
)

if __name__ == "__main__":
    command(CORPUS, __doc__)
