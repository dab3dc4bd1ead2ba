"""From rows to what training reads: encoder features and codec codes of every recording that some task needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from omnikit.data.rows import Clip
from omnikit.data.store import ArrayStore, fingerprint, write_store
from omnikit.interfaces import AudioEncoder, Codec

logger = logging.getLogger(__name__)
_CHUNK = 512  # recordings sorted by length together
_BATCH_SECONDS = 40.0


def features_of(encoder: AudioEncoder, clips: list[Clip], folder: str | Path, name: str) -> ArrayStore:
    """Encoder features [T, D] (float16) of recordings; made once per encoder weights and set of recordings."""

    def encode(wavs: list[Tensor]) -> list[Tensor]:
        lengths = torch.tensor([len(w) for w in wavs], device=_device(encoder))
        features, counts = encoder(pad_sequence(wavs, batch_first=True).to(lengths.device), lengths)
        return [f[:n].half().cpu() for f, n in zip(features, counts.tolist(), strict=True)]

    return _store(encoder, clips, encode, encoder.sample_rate, Path(folder), f"{name}-features")


def codes_of(codec: Codec, clips: list[Clip], folder: str | Path, name: str) -> ArrayStore:
    """Codes [K, T] (int16) of recordings; made once per codec weights and set of recordings."""

    def encode(wavs: list[Tensor]) -> list[Tensor]:
        # one by one: what a codec makes of padding is not defined
        return [codec.encode(w[None].to(_device(codec)))[0].to(torch.int16).cpu() for w in wavs]

    return _store(codec, clips, encode, codec.sample_rate, Path(folder), f"{name}-codes")


def _device(module: torch.nn.Module) -> torch.device:
    return next((t.device for t in module.state_dict().values()), torch.device("cpu"))


def _store(
    part: AudioEncoder | Codec,
    clips: list[Clip],
    encode: Callable[[list[Tensor]], list[Tensor]],
    sample_rate: int,
    folder: Path,
    name: str,
) -> ArrayStore:
    clips = list({clip.key: clip for clip in clips}.values())
    path = folder / f"{name}-{fingerprint(part, *sorted(clip.key for clip in clips))}.arrow"
    if not path.is_file():
        part.eval()
        with torch.inference_mode():
            write_store(path, _encode_all(clips, encode, sample_rate, name))
    return ArrayStore(path)


def _encode_all(
    clips: list[Clip], encode: Callable[[list[Tensor]], list[Tensor]], sample_rate: int, name: str
) -> Iterator[tuple[str, Tensor]]:
    skipped = 0
    with tqdm(total=len(clips), desc=name) as bar:
        for begin in range(0, len(clips), _CHUNK):
            loaded = []
            for clip in clips[begin : begin + _CHUNK]:
                try:
                    loaded.append((clip.key, clip.load(sample_rate)))
                except ValueError as error:
                    skipped += 1
                    logger.warning("skipped: %s", error)
                bar.update()
            for batch in _batches(loaded, sample_rate):
                yield from zip([key for key, _ in batch], encode([wav for _, wav in batch]), strict=True)
    if skipped:
        logger.warning("%s: %d of %d recordings skipped", name, skipped, len(clips))


def _batches(loaded: list[tuple[str, Tensor]], sample_rate: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Recordings of similar length, so that little padding is computed."""
    batch: list[tuple[str, Tensor]] = []
    for item in sorted(loaded, key=lambda item: len(item[1])):
        if batch and (len(batch) + 1) * len(item[1]) > _BATCH_SECONDS * sample_rate:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
