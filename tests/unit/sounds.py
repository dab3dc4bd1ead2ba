"""Sound files for tests, valid in many formats or damaged at random, and all ways in which omnikit reads them."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import soundfile
import torch
from toy import ToyEncoder

from omnikit.audio.io import load_audio
from omnikit.audio.reader import Unusable
from omnikit.data.encode_recordings import feature_encoder
from omnikit.data.live_features import UnusableRecording, expected_frames, load_wav
from omnikit.data.manifest_reader import ManifestEntry, Recording, read_manifest
from omnikit.data.recording_check import check_recording
from omnikit.data.skipped import NOTES, Remark
from omnikit.offline.batches import DecodedAnswer, Problem, each_reply, load_recordings
from omnikit.prepare.shards import Summary
from omnikit.prepare.tokenize import Parts, tokenize
from omnikit.tasks import TASKS

RATE = 16000
FORMATS = {
    "wav": ("WAV", "PCM_16"), "float": ("WAV", "FLOAT"), "adpcm": ("WAV", "IMA_ADPCM"), "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", None), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "w64": ("W64", "PCM_16"),
    "rf64": ("RF64", "PCM_16"), "aiff": ("AIFF", "PCM_16"), "caf": ("CAF", "PCM_16"), "au": ("AU", "PCM_16"),
}  # fmt: skip
Outcome = int | str
"""Result of reading a sound file: its length in samples at the encoder's sample rate, or why it is unusable."""


def noise(samples: int = 8000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, samples)


def encoded(name: str, samples: np.ndarray | None = None, rate: int = RATE) -> bytes:
    """Return the bytes of a sound file in one of the formats in `FORMATS`."""
    kind, subtype = FORMATS[name]
    buffer = io.BytesIO()
    soundfile.write(buffer, noise() if samples is None else samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def mutated(count: int, seed: int, names: tuple[str, ...] = ("wav", "flac", "mp3", "ogg", "opus")) -> list[bytes]:
    """Return damaged sound files: bytes of header or body changed, header fields overwritten, or the end missing."""
    draw, whole = random.Random(seed), [encoded(name) for name in names]
    return [_mutated(bytearray(whole[i % len(whole)]), draw) for i in range(count)]


def _mutated(data: bytearray, draw: random.Random) -> bytes:
    kind = draw.choice(["head", "body", "both", "field", "cut"])
    if kind in ("head", "both"):
        for _ in range(draw.randint(1, 6)):
            data[draw.randrange(100)] = draw.choice([0, 255, draw.randrange(256)])
    if kind in ("body", "both"):
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    if kind == "field":
        at = draw.randrange(96)
        data[at : at + 4] = draw.choice(
            [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\1\0\0\0", b"\0\0\0\1"]
        )
    return bytes(data[: draw.randrange(len(data))] if kind == "cut" else data)


class Ear(ToyEncoder):
    """A toy audio encoder that takes recordings of any length, and whose only feature is the length in samples."""

    def forward(self, wav: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.stack([lengths // 1000, lengths % 1000], dim=-1).float()  # numbers that float16 represents
        return features[:, None], torch.ones_like(lengths)

    def num_frames(self, samples: int) -> int:
        return 1


def by_all_paths(files: list[Path], folder: Path) -> dict[str, list[Outcome]]:
    """Read each sound file in every way that omnikit has, and return the results by the name of the way.

    The ways are: a single file, from bytes, in a batch, for a cache, on the fly in training, in `tokenize`, in
    `prepare`.
    """
    entries = [ManifestEntry(str(i), "x", a1=Recording(str(i), path=str(file))) for i, file in enumerate(files)]
    return {
        "singly": [_outcome(lambda file=file: len(load_audio(file, RATE))) for file in files],
        "bytes": [_outcome(lambda file=file: len(_embedded(file).load(RATE))) for file in files],
        "batch": _in_batch(entries),
        "cache": [_in_cache(entry) for entry in entries],
        "on the fly": [_on_the_fly(entry) for entry in entries],
        "tokenize": _tokenized(files, folder),
        "prepare": [_prepared(file) for file in files],
    }


def _embedded(file: Path) -> Recording:
    return Recording("row", table=[file.read_bytes()], column="a1")


def _outcome(length) -> Outcome:
    try:
        return length()
    except Unusable as error:
        assert "\n" not in str(error)
        return error.reason


def _in_batch(entries: list[ManifestEntry]) -> list[Outcome]:
    def respond(batch: list[ManifestEntry]):
        heard, problems = load_recordings(batch, RATE)
        yield from ((entry, DecodedAnswer("", torch.zeros(len(wav)))) for entry, wav in heard)
        yield from problems

    found = each_reply(respond, TASKS["A1T1"], entries, batch_size=4, quiet=True, max_seconds=30.0)
    outcomes = {entry.id: x.reason if isinstance(x, Problem) else len(x.codes) for entry, x in found}
    return [outcomes[entry.id] for entry in entries]


def _in_cache(entry: ManifestEntry) -> Outcome:
    return _outcome(lambda: _length(feature_encoder(Ear()).batch([entry.a1.load(RATE)])[0]))


def _length(features: torch.Tensor) -> int:
    thousands, rest = features[0].tolist()
    return int(1000 * thousands + rest)


def _on_the_fly(entry: ManifestEntry) -> Outcome:
    expected = expected_frames(Ear(), entry)
    if isinstance(expected, str):
        return expected
    try:
        return len(load_wav(Ear(), entry))
    except UnusableRecording:
        return "unreadable"  # the damage was found only when the sample was needed


def _tokenized(files: list[Path], folder: Path) -> list[Outcome]:
    folder.mkdir()
    entries = {str(i): {"t1": "x", "a1": str(file)} for i, file in enumerate(files)} | {"end": {"t1": "x"}}
    (folder / "m.json").write_text(json.dumps(entries))
    with _reasons() as reasons:
        tokenize(folder / "m.json", folder / "out", Parts(encoder=Ear()))
    made = {
        entry.id: _length(entry.features.load())
        for entry in read_manifest(folder / "out", folder / "c")
        if entry.features
    }
    return [made.get(str(i), reasons.get(str(i))) for i in range(len(files))]


class _reasons:
    """Context manager that yields a mapping from the id of each entry that `tokenize` skips to the reason."""

    def __enter__(self) -> dict[str, str]:
        self.kept, found = Summary.leave_out, {}

        def leave_out(summary: Summary, remark: Remark, strict: bool) -> None:
            if remark.reason not in NOTES:
                found[remark.example] = remark.reason
            self.kept(summary, remark, strict)

        Summary.leave_out = leave_out
        return found

    def __exit__(self, *_: object) -> None:
        Summary.leave_out = self.kept


def _prepared(file: Path) -> Outcome:
    found = check_recording(file, decode_all=True)
    return found.problem if found.problem not in (None, "clipped") else max(1, round(found.seconds * RATE))
