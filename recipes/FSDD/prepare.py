"""Prepares strings of spoken digits from the Free Spoken Digit Dataset, or from recordings that are named like its own.

    python prepare.py --data_folder /data/free-spoken-digit-dataset --save_folder strings --held_out george

A string consists of 1 to 7 recordings of one speaker with silence between them, at 16 kHz; its transcript is in words.
For a held-out speaker there are three splits, each a folder of Parquet shards with embedded recordings (docs/data.md).
`train-without-<speaker>` and `valid-without-<speaker>` are made from the other speakers' recordings, from those with
index 5 or more and 0 to 4 (upstream's own test split), and `test-<speaker>` from all recordings of the speaker.
Training strings are resampled by up to 12 % and scaled, to imitate more speakers. `--speakers NAME ..` writes
`test-<speaker>` only; without either flag all splits of all speakers are written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from omnikit.audio.io import load_audio
from omnikit.audio.reader import Unusable
from omnikit.data.augment import Augment, Level, Silence, SpeedChange
from omnikit.data.find_files import recordings
from omnikit.data.recording_check import encode_flac
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.prepare.corpus import Corpus, Item, ManifestPart, Remark, command

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>.+)_(?P<index>\d+)")
TEST, TRAIN, VALID = "test-", "train-without-", "valid-without-"
"""Prefixes of the names of splits, which end with the name of a speaker."""
UPSTREAM_TEST = 5
"""Number of recordings of each speaker and digit, those of the lowest indices, that form upstream's test split."""
PASSES = {TRAIN: 4, VALID: 2, TEST: 2}
"""Number of digit strings in which each recording is used, by the prefix of the split."""
LONGEST = 7
"""Maximum number of recordings in a digit string."""
PAUSE, EDGE = (0.05, 0.4), (0.1, 0.3)  # range of silence in seconds, between recordings and around a string
CHANGE = Augment(
    speed=SpeedChange(probability=1.0, factor=(0.88, 1.12)),
    silence=Silence(probability=0.5, seconds=(0.0, 0.2)),
    level=Level(probability=1.0, gain_db=(-20.0, 0.0)),
)
"""Effects for training strings; without noise, which the training of the encoder adds."""
SAMPLE_RATE = 16000
SEED = 1


def recordings_folder(data_folder: Path) -> Path:
    """Return the folder that holds the recordings: `recordings` in the data folder, as upstream, or the data folder."""
    inner = data_folder / "recordings"
    return inner if inner.is_dir() else data_folder


def speakers(data_folder: str | Path) -> list[str]:
    """Return the sorted names of the speakers of the recordings in a data folder."""
    names = (NAME.fullmatch(path.stem) for path in recordings(recordings_folder(Path(data_folder))))
    return sorted({name["speaker"] for name in names if name})


def check_speakers(flag: str, names: Sequence[str], data_folder: str | Path) -> None:
    """Raise `ValueError` if a speaker named by a flag has no recordings.

    A data folder without any recordings is not checked here, since `prepare` reports it.
    """
    known = speakers(data_folder)
    unknown = [name for name in names if name not in known]
    if known and unknown:
        raise ValueError(f"--{flag} {' '.join(unknown)}: not in {data_folder}; choices: {', '.join(known)}")


def splits(data_folder: Path) -> dict[str, Path]:
    """Return the names of all splits with the folder of the recordings: three for each speaker.

    If there is only one speaker, who cannot be held out, only the test split remains.
    """
    names = speakers(data_folder)
    kinds = (TRAIN, VALID, TEST) if len(names) > 1 else (TEST,)
    return {f"{kind}{name}": recordings_folder(data_folder) for name in names for kind in kinds}


def parts(split: str, folder: Path) -> list[ManifestPart]:
    """Return the parts of a split, one shard for each speaker in it."""
    kind = next(kind for kind in PASSES if split.startswith(kind))
    own = split.removeprefix(kind)
    wanted = [own] if kind == TEST else [name for name in speakers(folder) if name != own]
    files: dict[str, list[Path]] = {name: [] for name in wanted}
    strays = []
    for path in recordings(folder):
        name = NAME.fullmatch(path.stem)
        if name is None:
            strays.append(path)
        elif name["speaker"] in files and (kind == TEST or (int(name["index"]) < UPSTREAM_TEST) == (kind == VALID)):
            files[name["speaker"]].append(path)
    files[wanted[0]] += strays  # in one part only, so that they are counted once
    return [ManifestPart(name, of, lambda name=name, of=of: items(kind, name, of)) for name, of in files.items()]


def items(kind: str, speaker: str, files: list[Path]) -> Iterator[Item | Remark]:
    """Yield the digit strings of a speaker as manifest entries, or remarks for unusable recordings.

    The strings are the same at each call and do not depend on the other speakers of the split.
    """
    found: list[tuple[int, np.ndarray]] = []
    for path in files:
        recording = read(path)
        if isinstance(recording, Remark):
            yield recording
        else:
            found.append(recording)
    rng = np.random.default_rng([SEED, *f"{kind}{speaker}".encode()])
    for number, string in enumerate(strings(len(found), PASSES[kind], rng)):
        digits = [found[i][0] for i in string]
        wav = joined([found[i][1] for i in string], rng)
        yield {
            "id": f"{speaker}-{number:04d}-{''.join(map(str, digits))}",
            "speaker": speaker,
            "language": "en",
            "t1": " ".join(DIGITS[digit] for digit in digits),
            "a1": encode_flac(CHANGE(wav, SAMPLE_RATE, rng) if kind == TRAIN else wav, SAMPLE_RATE),
        }


def read(path: Path) -> tuple[int, np.ndarray] | Remark:
    """Return the digit of a recording and its waveform [N] at 16 kHz, or a remark if the file cannot be used."""
    name = NAME.fullmatch(path.stem)
    if name is None:
        return Remark("malformed", path.name)
    try:
        return int(name["digit"]), load_audio(path, SAMPLE_RATE).numpy()
    except Unusable as error:
        return Remark(error.reason, path.name, str(error))


def strings(recordings: int, passes: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield lists of 1 to `LONGEST` random indices of recordings; in each pass every recording is in one list."""
    for _ in range(passes):
        order = rng.permutation(recordings).tolist()
        while order:
            length = int(rng.integers(1, LONGEST + 1))
            yield order[:length]
            order = order[length:]


def joined(wavs: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return waveforms concatenated to one [N], with silence of random length between and around them."""
    pieces = [silence(EDGE, rng)]
    for wav in wavs:
        pieces += [wav, silence(PAUSE, rng)]
    return np.concatenate([*pieces[:-1], silence(EDGE, rng)])


def silence(seconds: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    return np.zeros(int(rng.uniform(*seconds) * SAMPLE_RATE), np.float32)


CORPUS = Corpus(
    layout="recordings/<digit>_<speaker>_<index>.wav",
    fields=("id", "duration", "speaker", "language", "t1", "a1"),
    splits=splits,
    parts=parts,
    shards=True,
    embedded=True,
)


def with_splits(words: Sequence[str]) -> list[str]:
    """Return a command line in which `--held_out NAME ..` and `--speakers NAME ..` are replaced by `--splits ..`.

    Raises:
        ValueError: a speaker has no recordings.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data_folder")
    parser.add_argument("--held_out", nargs="+", default=[])
    parser.add_argument("--speakers", nargs="+", default=[])
    own, rest = parser.parse_known_args(words)
    for flag in ("held_out", "speakers"):
        check_speakers(flag, getattr(own, flag), own.data_folder or "")
    chosen = [f"{kind}{name}" for name in own.held_out for kind in (TRAIN, VALID, TEST)]
    chosen += [f"{TEST}{name}" for name in own.speakers]
    folder = [] if own.data_folder is None else ["--data_folder", own.data_folder]
    return [*rest, *folder, *(["--splits", *chosen] if chosen else [])]


if __name__ == "__main__":
    with bad_input_exits():
        command(CORPUS, __doc__, with_splits(sys.argv[1:]))
