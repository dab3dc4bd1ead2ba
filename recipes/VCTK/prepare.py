"""Prepares manifests of VCTK 0.92, a corpus of English speech of many speakers.

    python prepare.py --data_folder /data/VCTK-Corpus-0.92 --save_folder manifests

This writes `mic1.csv`. The second microphone's recordings of the same sentences are another split, `--splits mic2`. The
texts of speaker p315 and the second microphone of p280 are missing upstream and are counted as skipped. docs/data.md
explains the fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omnikit.data.find_files import visible
from omnikit.prepare.corpus import Corpus, Item, ManifestPart, Remark, command
from omnikit.prepare.corpus_readers import audio_without_text, first_with, read_lines

AUDIO, TEXT = "wav48_silence_trimmed", "txt"
MICROPHONES = ("mic1", "mic2")


def splits(data_folder: Path) -> dict[str, Path]:
    """Return a split for each microphone, with the folder of the corpus; {} if the data folder does not hold it."""
    root = first_with(data_folder, ["VCTK-Corpus-0.92"], AUDIO)
    return {} if root is None else dict.fromkeys(MICROPHONES, root)


def parts(split: str, root: Path) -> list[ManifestPart]:
    folders = sorted(path for kind in (AUDIO, TEXT) for path in visible(root / kind, "*") if path.is_dir())
    return [ManifestPart(split, folders, lambda: items(split, root))]


def items(microphone: str, root: Path) -> Iterator[Item | Remark]:
    """Yield an entry for each text file of each speaker, such as `p225_001.txt`, with one microphone's recording."""
    for speaker in sorted({path.name for kind in (AUDIO, TEXT) for path in visible(root / kind, "*") if path.is_dir()}):
        recordings = (root / AUDIO / speaker).resolve()
        texts = sorted(visible(root / TEXT / speaker, "*.txt"))
        for text in texts:
            name = f"{text.stem}_{microphone}"
            yield {
                "id": name,
                "speaker": speaker,
                "language": "en",
                "t1": " ".join(read_lines(text)),
                "a1": str(recordings / f"{name}.flac"),
            }
        named = {f"{text.stem}_{microphone}" for text in texts}
        yield from audio_without_text(recordings, named, f"*_{microphone}.*")


CORPUS = Corpus(
    layout="wav48_silence_trimmed/<speaker>/<speaker>_<number>_mic1.flac and txt/<speaker>/<speaker>_<number>.txt",
    fields=("id", "duration", "speaker", "language", "t1", "a1"),
    splits=splits,
    parts=parts,
    sample_rate=48000,
    default_splits=("mic1",),
)

if __name__ == "__main__":
    command(CORPUS, __doc__)
