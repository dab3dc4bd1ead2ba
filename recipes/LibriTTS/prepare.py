"""Prepares manifests of LibriTTS, or of LibriTTS-R, which has the same layout.

    python prepare.py --data_folder /data/LibriTTS --save_folder manifests --splits train-clean-100 train-clean-360

This writes one CSV file for each split; docs/data.md explains its fields. The transcripts are upstream's normalized
texts, in which numbers and abbreviations are written as words.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omnikit.data.find_files import visible
from omnikit.prepare.corpus import Corpus, Item, ManifestPart, Remark, command
from omnikit.prepare.corpus_readers import audio_without_text, read_lines, split_folders

TEXT = ".normalized.txt"


def splits(data_folder: Path) -> dict[str, Path]:
    """Return the name and folder of each split that has transcripts, such as `train-clean-100` and `dev-other`."""
    return split_folders(data_folder, ["LibriTTS", "LibriTTS_R"], f"*/*/*{TEXT}")


def parts(split: str, folder: Path) -> list[ManifestPart]:
    chapters = sorted(path for path in visible(folder, "*/*") if path.is_dir())
    return [ManifestPart(split, chapters, lambda: items(chapters))]


def items(chapters: list[Path]) -> Iterator[Item | Remark]:
    """Yield a manifest entry for each file of normalized text in the chapter folders of a split."""
    for chapter in chapters:
        names = sorted(path.name.removesuffix(TEXT) for path in visible(chapter, f"*{TEXT}"))
        for name in names:
            yield {
                "id": name,
                "speaker": chapter.parent.name,
                "language": "en",
                "t1": " ".join(read_lines(chapter / f"{name}{TEXT}")),
                "a1": str(chapter.resolve() / f"{name}.wav"),
            }
        yield from audio_without_text(chapter, set(names))


CORPUS = Corpus(
    layout="<split>/<speaker>/<chapter>/<speaker>_<chapter>_<paragraph>_<sentence>.wav with .normalized.txt beside it",
    fields=("id", "duration", "speaker", "language", "t1", "a1"),
    splits=splits,
    parts=parts,
    sample_rate=24000,
)

if __name__ == "__main__":
    command(CORPUS, __doc__)
