"""Prepares manifests of Open-Orca, a corpus of written questions and answers.

    python prepare.py --data_folder /data/OpenOrca --save_folder manifests

This writes a folder of Parquet shards of about 100000 entries for each upstream file (`1M-GPT4-Augmented`,
`3_5M-GPT3_5-Augmented`). The system prompt is omitted, since the models trained here have none. docs/data.md explains
the fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnikit.data.find_files import visible
from omnikit.data.manifest_columns import converted
from omnikit.prepare.corpus import Corpus, Item, ManifestPart, command
from omnikit.prepare.corpus_readers import parquet_parts, text_of

ROWS = 100_000  # minimum number of rows per shard


def splits(data_folder: Path) -> dict[str, Path]:
    """Return the name and path of each split, which is one Parquet file of the corpus."""
    return {path.stem: path for path in sorted(visible(data_folder, "*.parquet"))}


def parts(split: str, path: Path) -> list[ManifestPart]:
    return parquet_parts(path, ["id", "question", "response"], to_item, ROWS)


def to_item(row: dict[str, Any]) -> Item:
    name = converted("id", row["id"], "id")
    return {"id": name, "language": "en", "t1": text_of(row, "question"), "t2": text_of(row, "response")}


CORPUS = Corpus(
    layout="<name>.parquet with id, system_prompt, question and response",
    fields=("id", "language", "t1", "t2"),
    splits=splits,
    parts=parts,
    shards=True,
)

if __name__ == "__main__":
    command(CORPUS, __doc__)
