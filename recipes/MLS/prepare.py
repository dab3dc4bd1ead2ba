"""Prepares manifests of Multilingual LibriSpeech (MLS).

    python prepare.py --data_folder /data/MLS --save_folder manifests --splits german-train german-dev

This writes a folder of Parquet shards for each split of each language (`german-train`, or `german_opus-train` of the
compressed edition), with a shard for every 100000 lines of transcripts. The manifests hold paths of recordings;
docs/data.md explains their fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omnikit.data.find_files import visible
from omnikit.prepare.corpus import Corpus, Item, ManifestPart, Remark, command
from omnikit.prepare.corpus_readers import audio_without_text, read_lines

PREFIX, OPUS, TRANSCRIPTS = "mls_", "_opus", "transcripts.txt"
LINES = 100_000  # transcript lines per shard
LANGUAGES = {
    "english": "en",
    "german": "de",
    "dutch": "nl",
    "spanish": "es",
    "french": "fr",
    "italian": "it",
    "portuguese": "pt",
    "polish": "pl",
}


def splits(data_folder: Path) -> dict[str, Path]:
    """Return the name `<language>-<split>` and the folder of each split in the data folder.

    The data folder holds folders `mls_<language>`, or is one of them.
    """
    data_folder = data_folder.resolve()
    roots = [data_folder] if data_folder.name.startswith(PREFIX) else sorted(visible(data_folder, f"{PREFIX}*"))
    return {
        f"{root.name.removeprefix(PREFIX)}-{split}": root / split
        for root in roots
        for split in ("train", "dev", "test")
        if (root / split / TRANSCRIPTS).is_file()
    }


def parts(split: str, folder: Path) -> list[ManifestPart]:
    transcripts, audio = folder / TRANSCRIPTS, folder / "audio"
    offsets = line_offsets(transcripts, LINES)
    ranges = zip(offsets, [*offsets[1:], transcripts.stat().st_size], strict=True)
    return [
        *(
            ManifestPart(f"{i:04d}", [transcripts], lambda span=span: items(split, folder, *span))
            for i, span in enumerate(ranges)
        ),
        ManifestPart(
            "audio-without-text",
            [transcripts, *([audio] if audio.is_dir() else [])],
            lambda: unnamed(folder, transcripts),
        ),
    ]


def line_offsets(path: Path, lines: int) -> list[int]:
    """Return the byte offset of every `lines`-th line of a file, from the first line on."""
    offsets, at = [], 0
    with path.open("rb") as file:
        for i, line in enumerate(file):
            if i % lines == 0:
                offsets.append(at)
            at += len(line)
    return offsets


def items(split: str, folder: Path, begin: int, end: int) -> Iterator[Item | Remark]:
    """Yield a manifest entry for each line `<speaker>_<book>_<number> TAB text` in a byte range of the transcripts."""
    language = split.rpartition("-")[0].removesuffix(OPUS)
    ending = ".opus" if folder.parent.name.endswith(OPUS) else ".flac"
    audio = folder.resolve() / "audio"
    with (folder / TRANSCRIPTS).open("rb") as file:
        file.seek(begin)
        for line in file.read(end - begin).decode("utf-8", "surrogateescape").split("\n"):
            if not line.strip():
                continue
            name, _, text = line.partition("\t")
            if name.count("_") != 2:
                yield Remark("malformed", line[:60])
                continue
            speaker, book, _ = name.split("_")
            yield {
                "id": name,
                "speaker": speaker,
                "language": LANGUAGES.get(language, language),
                "t1": text.strip(),
                "a1": str(audio / speaker / book / f"{name}{ending}"),
            }


def unnamed(folder: Path, transcripts: Path) -> Iterator[Remark]:
    """Yield a remark for each recording that no line of the transcripts names."""
    named = {line.partition("\t")[0] for line in read_lines(transcripts)}
    for speaker in sorted(visible(folder / "audio", "*")):
        yield from audio_without_text(speaker, named, "*/*")


CORPUS = Corpus(
    layout="mls_<language>/<split>/ with transcripts.txt and audio/<speaker>/<book>/<speaker>_<book>_<number>.flac",
    fields=("id", "duration", "speaker", "language", "t1", "a1"),
    splits=splits,
    parts=parts,
    shards=True,
    sample_rate=16000,
)

if __name__ == "__main__":
    command(CORPUS, __doc__)
