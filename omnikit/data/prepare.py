"""Encoder features and codec codes of recordings: how many are made at a time, and where they are kept for training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from omnikit.data.rows import Clip
from omnikit.data.shards import in_batches
from omnikit.data.skipped import Skipped
from omnikit.data.store import ArrayStore, fingerprint, write_store
from omnikit.interfaces import AudioEncoder, Codec
from omnikit.reader import Unusable

logger = logging.getLogger(__name__)
BATCH_SECONDS = 40.0
"""Of recordings that are encoded together, padding included."""
CHUNK = 512
"""Recordings sorted by length together."""
Key = TypeVar("Key")


@dataclass(frozen=True)
class Making:
    """What a part makes of recordings, in an order and in batches that depend on the recordings alone.

    Args:
        encode: waveforms [N] -> an array of each, on the CPU.
    """

    part: AudioEncoder | Codec
    encode: Callable[[list[Tensor]], list[Tensor]]
    batch_seconds: float = BATCH_SECONDS

    @torch.inference_mode()
    def batch(self, wavs: list[Tensor]) -> list[Tensor | None]:
        """Of each waveform [N] its array; None where the part refuses it, such as one that is too short."""
        try:
            return self.encode(wavs)
        except ValueError as error:
            if len(wavs) > 1:
                return [self.batch([wav])[0] for wav in wavs]
            logger.warning("skipped: %s", error)
            return [None]

    def __call__(self, loaded: Iterable[tuple[Key, Tensor]]) -> Iterator[tuple[Key, Tensor | None]]:
        """Key and waveform [N] of recordings -> key and array, those of like lengths together."""
        batch: list[tuple[Key, Tensor]] = []
        for item in sorted(loaded, key=lambda item: len(item[1])):
            if batch and (len(batch) + 1) * len(item[1]) > self.batch_seconds * self.part.sample_rate:
                yield from self._named(batch)
                batch = []
            batch.append(item)
        if batch:
            yield from self._named(batch)

    def _named(self, batch: list[tuple[Key, Tensor]]) -> Iterator[tuple[Key, Tensor | None]]:
        return zip([key for key, _ in batch], self.batch([wav for _, wav in batch]), strict=True)


def make_features(encoder: AudioEncoder, batch_seconds: float = BATCH_SECONDS) -> Making:
    """Encoder features [T, D], float16."""

    def encode(wavs: list[Tensor]) -> list[Tensor]:
        lengths = torch.tensor([len(w) for w in wavs], device=_device(encoder))
        features, counts = encoder(pad_sequence(wavs, batch_first=True).to(lengths.device), lengths)
        return [f[:n].half().cpu() for f, n in zip(features, counts.tolist(), strict=True)]

    return Making(encoder.eval(), encode, batch_seconds)


def make_codes(codec: Codec, batch_seconds: float = BATCH_SECONDS) -> Making:
    """Codes [K, T], int16: one recording at a time where padding would change them."""

    def together(wavs: list[Tensor]) -> list[Tensor]:
        codes = codec.encode(pad_sequence(wavs, batch_first=True).to(_device(codec))).to(torch.int16).cpu()
        return [c[:, : math.ceil(len(w) / codec.frame_samples)] for c, w in zip(codes, wavs, strict=True)]

    def encode(wavs: list[Tensor]) -> list[Tensor]:
        return together(wavs) if codec.encodes_padded else [together([wav])[0] for wav in wavs]

    return Making(codec.eval(), encode, batch_seconds)


def features_of(encoder: AudioEncoder, clips: list[Clip], folder: str | Path, name: str) -> ArrayStore:
    """Encoder features [T, D] (float16) of recordings; made once per encoder weights and set of recordings."""
    return _store(make_features(encoder), clips, Path(folder), f"{name}-features")


def codes_of(codec: Codec, clips: list[Clip], folder: str | Path, name: str) -> ArrayStore:
    """Codes [K, T] (int16) of recordings; made once per codec weights and set of recordings."""
    return _store(make_codes(codec), clips, Path(folder), f"{name}-codes")


def _device(module: torch.nn.Module) -> torch.device:
    return next((t.device for t in module.state_dict().values()), torch.device("cpu"))


def _store(making: Making, clips: list[Clip], folder: Path, name: str) -> ArrayStore:
    clips = list({clip.key: clip for clip in clips}.values())
    path = folder / f"{name}-{fingerprint(making.part, *sorted(clip.key for clip in clips))}.arrow"
    if not path.is_file():
        write_store(path, _encode_all(making, clips, name))
    return ArrayStore(path)


def _encode_all(making: Making, clips: list[Clip], name: str) -> Iterator[tuple[str, Tensor]]:
    skipped = Skipped()
    with tqdm(total=len(clips), desc=name) as bar:
        for chunk in in_batches(clips, CHUNK):
            loaded = []
            for clip in chunk:
                try:
                    loaded.append((clip.key, clip.load(making.part.sample_rate)))
                except Unusable as error:
                    skipped.add(error.reason, clip.name)
                    logger.warning("skipped: %s", error)
                bar.update()
            for key, array in making(loaded):
                if array is None:
                    skipped.add("refused", key)
                else:
                    yield key, array
    if skipped:
        logger.warning("%s: %d of %d recordings skipped: %s", name, skipped.total(), len(clips), skipped)
