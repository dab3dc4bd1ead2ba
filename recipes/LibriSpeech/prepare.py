"""Prepares manifests of LibriSpeech, or of a corpus with the same layout.

    python prepare.py --data_folder /data/LibriSpeech --save_folder manifests --splits train-clean-100 dev-clean

This writes one CSV file for each split; docs/data.md explains its fields. Upstream's upper-case transcripts become
lower case, as in other corpora.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omnikit.data.find_files import visible
from omnikit.prepare.corpus import Corpus, Item, ManifestPart, Remark, command
from omnikit.prepare.corpus_readers import audio_without_text, read_lines, split_folders


def splits(data_folder: Path) -> dict[str, Path]:
    """Return the name and folder of each split that has transcripts, such as `train-clean-100` and `dev-other`."""
    return split_folders(data_folder, ["LibriSpeech"], "*/*/*.trans.txt")


def parts(split: str, folder: Path) -> list[ManifestPart]:
    transcripts = sorted(visible(folder, "*/*/*.trans.txt"))
    chapters = [transcript.parent for transcript in transcripts]
    return [ManifestPart(split, [*transcripts, *chapters], lambda: items(transcripts))]


def items(transcripts: list[Path]) -> Iterator[Item | Remark]:
    """Yield a manifest entry for each line `<speaker>-<chapter>-<number> TEXT` of the transcripts."""
    for transcript in transcripts:
        named = set()
        for line in read_lines(transcript):
            name, _, text = line.partition(" ")
            named.add(name)
            yield {
                "id": name,
                "speaker": name.split("-")[0],
                "language": "en",
                "t1": text.strip().lower(),
                "a1": str(transcript.parent.resolve() / f"{name}.flac"),
            }
        yield from audio_without_text(transcript.parent, named)


CORPUS = Corpus(
    layout="<split>/<speaker>/<chapter>/ with <speaker>-<chapter>.trans.txt and <speaker>-<chapter>-<number>.flac",
    fields=("id", "duration", "speaker", "language", "t1", "a1"),
    splits=splits,
    parts=parts,
    sample_rate=16000,
)

if __name__ == "__main__":
    command(CORPUS, __doc__)
