"""Prepares the manifest of LJSpeech, a corpus of one speaker for speech synthesis.

    python prepare.py --data_folder /data/LJSpeech-1.1 --save_folder manifests

This writes `all.csv`, whose fields docs/data.md explains. The transcripts are upstream's normalized texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omnikit.prepare.corpus import Corpus, Item, ManifestPart, Remark, command
from omnikit.prepare.corpus_readers import audio_without_text, first_with, read_lines

TEXTS, AUDIO = "metadata.csv", "wavs"


def splits(data_folder: Path) -> dict[str, Path]:
    """Return the only split, `all`, with the folder of the corpus; {} if the data folder does not hold it."""
    root = first_with(data_folder, ["LJSpeech-1.1"], TEXTS)
    return {} if root is None else {"all": root}


def parts(split: str, root: Path) -> list[ManifestPart]:
    folder = [root / AUDIO] if (root / AUDIO).is_dir() else []
    return [ManifestPart(split, [root / TEXTS, *folder], lambda: items(root))]


def items(root: Path) -> Iterator[Item | Remark]:
    """Yield an entry for each line `id|text|normalized text` of the transcripts; quotation marks have no meaning."""
    named = set()
    for line in read_lines(root / TEXTS):
        columns = line.split("|")
        named.add(columns[0])
        if len(columns) != 3:
            yield Remark("malformed", line[:60])
            continue
        yield {
            "id": columns[0],
            "speaker": "LJ",
            "language": "en",
            "t1": columns[2].strip(),
            "a1": str(root.resolve() / AUDIO / f"{columns[0]}.wav"),
        }
    yield from audio_without_text(root / AUDIO, named)


CORPUS = Corpus(
    layout="metadata.csv (id|text|normalized text) and wavs/<id>.wav",
    fields=("id", "duration", "speaker", "language", "t1", "a1"),
    splits=splits,
    parts=parts,
    sample_rate=22050,
)

if __name__ == "__main__":
    command(CORPUS, __doc__)
