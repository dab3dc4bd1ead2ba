"""Prepares manifests of MOSS-002-SFT, a corpus of written conversations in English and Chinese.

    python prepare.py --data_folder /data/moss-002-sft-data --save_folder manifests --splits en_helpfulness

This writes a folder with one Parquet shard for each upstream file. Each turn of a conversation is an entry; they have
the same `dialog`, and `turn` is their number, from 0. docs/data.md explains the fields.

Upstream's files are expected as `{en,zh}_<kind>.json`, one array of objects, or `.jsonl`, one object per line. An
object has `plain_text`, "[Human]: ..<eoh> [MOSS]: ..<eoa>" for each turn, or, as in later releases, `chat`, an object
of turns with `Human` and `MOSS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omnikit.data.find_files import visible
from omnikit.data.manifest_columns import Malformed
from omnikit.prepare.corpus import Corpus, Item, ManifestPart, Remark, command
from omnikit.prepare.corpus_readers import read_lines, text_of

TAGS = re.compile(r"\[(?:Human|MOSS)\]:|<\|(?:Human|MOSS)\|>:|<eo[ahm]>")
BETWEEN = re.compile(r"[\s,\[]*")  # what separates the objects of an array
Turn = tuple[str, str]
"""The texts of the human and of MOSS in one turn of a conversation."""


def splits(data_folder: Path) -> dict[str, Path]:
    """Return the name and path of each split, which is one file of the corpus."""
    files = sorted(visible(data_folder, "*"))
    return {path.stem: path for path in files if re.match(r"(en|zh)_.*\.jsonl?$", path.name)}


def parts(split: str, path: Path) -> list[ManifestPart]:
    return [ManifestPart(split, [path], lambda: items(split, path))]


def items(split: str, path: Path) -> Iterator[Item | Remark]:
    """Yield an entry for each turn of each conversation; `dialog` has the conversation's index in the file."""
    for i, found in enumerate(conversations(path)):
        name = f"{split}-{i:07d}"
        try:
            turns = turns_of(found) if isinstance(found, dict) else []
        except Malformed as bad:
            yield Remark(bad.reason, name)
            continue
        if not turns:
            yield Remark("malformed", name)
            continue
        shared = {"language": split[:2], "dialog": name}
        for turn, (human, moss) in enumerate(turns):
            yield {"id": f"{name}-{turn}", **shared, "turn": turn, "t1": human, "t2": moss}


def conversations(path: Path) -> Iterator[Any]:
    """Yield the objects of a JSON or JSONL file; None for a part that is not valid JSON."""
    if path.suffix == ".jsonl":
        for line in read_lines(path):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield None
        return
    text = "".join(read_lines(path))
    decoder, at = json.JSONDecoder(), BETWEEN.match(text).end()
    while at < len(text) and text[at] != "]":
        try:
            found, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):  # the beginning of the next object is unknown
            yield None
            return
        yield found
        at = BETWEEN.match(text, at).end()


def turns_of(conversation: dict[str, Any]) -> list[Turn]:
    """Return the turns of a conversation; [] if it has none of the expected forms.

    Raises:
        Malformed: a turn is not text.
    """
    if isinstance(conversation.get("plain_text"), str):
        pairs = [turn.split("<eoh>") for turn in conversation["plain_text"].split("<eoa>") if turn.strip()]
    elif isinstance(conversation.get("chat"), dict) and all(isinstance(t, dict) for t in conversation["chat"].values()):
        pairs = [[text_of(turn, name) for name in ("Human", "MOSS")] for turn in conversation["chat"].values()]
    else:
        return []
    if any(len(pair) != 2 for pair in pairs):
        return []
    return [(TAGS.sub("", human).strip(), TAGS.sub("", moss).strip()) for human, moss in pairs]


CORPUS = Corpus(
    layout="{en,zh}_<kind>.json or .jsonl with plain_text",
    fields=("id", "language", "dialog", "turn", "t1", "t2"),
    splits=splits,
    parts=parts,
    shards=True,
)

if __name__ == "__main__":
    command(CORPUS, __doc__)
