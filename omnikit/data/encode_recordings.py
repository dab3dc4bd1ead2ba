"""Computes encoder features and codec codes of recordings in batches and caches them for training."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from omnikit.audio.reader import Unusable
from omnikit.data.array_cache import ArrayCache, ArrayLocation, ArrayStore, fingerprint, open_cache
from omnikit.data.batched import in_batches
from omnikit.data.content_digest import UNREADABLE, Stamp
from omnikit.data.digest_ledger import Seen, open_ledger
from omnikit.data.manifest_reader import Recording
from omnikit.data.skipped import Skipped
from omnikit.interfaces import AudioEncoder, Codec

logger = logging.getLogger(__name__)
BATCH_SECONDS = 40.0
"""Maximum total length in seconds, padding included, of the recordings that are encoded in one batch."""
CHUNK = 512
"""Number of recordings that are sorted by length together before they are split into batches."""
FP32, BF16 = PRECISIONS = ("fp32", "bf16")
"""Precisions of an encoder's products; with bf16 sums, norms and the log-mel spectrogram remain in float32."""
HELD = 2**27
"""Approximate maximum number of audio samples in memory at a time (512 MiB as float32)."""
_NOT_NOW = "not readable now"
Key = TypeVar("Key")


@dataclass(frozen=True)
class BatchEncoder:
    """Runs an encoder or a codec over recordings, in batches of similar length that depend on the recordings alone.

    Args:
        part: the encoder or the codec.
        encode: function from a list of waveforms [N] to a list of their features or codes on the CPU.
        batch_seconds: maximum total length of a batch in seconds, padding included.
    """

    part: AudioEncoder | Codec
    encode: Callable[[list[Tensor]], list[Tensor]]
    batch_seconds: float = BATCH_SECONDS

    @torch.inference_mode()
    def batch(self, wavs: list[Tensor]) -> list[Tensor | None]:
        """Return the features or codes of each waveform [N]; None if it is refused, for example as too short."""
        try:
            return self.encode(wavs)
        except ValueError as error:
            if len(wavs) > 1:
                return [self.batch([wav])[0] for wav in wavs]
            logger.warning("skipped: %s", error)
            return [None]

    def __call__(self, loaded: Iterable[tuple[Key, Tensor]]) -> Iterator[tuple[Key, Tensor | None]]:
        """Yield the key and the features or codes for each pair of key and waveform [N], shortest waveforms first.

        The features or codes are None where the encoder or the codec refuses the waveform.
        """
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


def feature_encoder(
    encoder: AudioEncoder, batch_seconds: float = BATCH_SECONDS, precision: str = FP32
) -> BatchEncoder:
    """Return a batch encoder that computes the features [T, D] (float16) of recordings.

    Args:
        precision: one of `PRECISIONS`.
    """

    def encode(wavs: list[Tensor]) -> list[Tensor]:
        lengths = torch.tensor([len(w) for w in wavs], device=_device(encoder))
        with torch.autocast(lengths.device.type, torch.bfloat16, enabled=precision == BF16):
            features, counts = encoder(pad_sequence(wavs, batch_first=True).to(lengths.device), lengths)
        return [f[:n].half().cpu() for f, n in zip(features, counts.tolist(), strict=True)]

    return BatchEncoder(encoder.eval(), encode, batch_seconds)


def code_encoder(codec: Codec, batch_seconds: float = BATCH_SECONDS) -> BatchEncoder:
    """Return a batch encoder that computes the codes [K, T] (int16) of recordings.

    Recordings are encoded one at a time if the codec's codes change with padding.
    """

    def together(wavs: list[Tensor]) -> list[Tensor]:
        codes = codec.encode(pad_sequence(wavs, batch_first=True).to(_device(codec))).to(torch.int16).cpu()
        return [c[:, : math.ceil(len(w) / codec.frame_samples)] for c, w in zip(codes, wavs, strict=True)]

    def encode(wavs: list[Tensor]) -> list[Tensor]:
        return together(wavs) if codec.encodes_padded else [together([wav])[0] for wav in wavs]

    return BatchEncoder(codec.eval(), encode, batch_seconds)


@dataclass(frozen=True)
class Encoded:
    """Features or codes of recordings in a cache, and what the recordings were when they were looked up."""

    store: ArrayStore
    """Features or codes by the key of the recording; a recording that could not be encoded has none."""
    stamps: dict[str, Stamp | None]
    """Size and modification time of each recording by its key; see `Content.stamp`."""
    skipped: Skipped
    """Recordings that could not be encoded, by reason."""
    lasting: bool
    """Whether all of them will be skipped again as long as they do not change."""


def cached_features(encoder: AudioEncoder, recordings: list[Recording], folder: str | Path, name: str) -> ArrayStore:
    """Return the encoder features [T, D] (float16) of recordings, computing those that the cache folder lacks.

    Args:
        name: name of the source, for the progress bar and the log.

    Raises:
        ValueError: the cache cannot be read or written; the message names the file.
    """
    return encode(feature_encoder(encoder), recordings, Path(folder), "features", name).store


def cached_codes(codec: Codec, recordings: list[Recording], folder: str | Path, name: str) -> ArrayStore:
    """Return the codes [K, T] (int16) of recordings, computing those that the cache folder lacks.

    Args, Raises: see `cached_features`.
    """
    return encode(code_encoder(codec), recordings, Path(folder), "codes", name).store


def encode(
    encoder: BatchEncoder,
    recordings: list[Recording],
    folder: Path,
    kind: str,
    name: str,
    allow: Callable[[list[Recording]], None] = lambda missing: None,
) -> Encoded:
    """Return the features or codes of recordings, computing those that the cache folder lacks; log unusable ones.

    Args:
        kind: `features` or `codes`.
        name: name of the source, for the progress bar and the log.
        allow: called with the recordings that are to be encoded, before the first one is; it may refuse by an error.

    Raises:
        ValueError: the cache cannot be read or written; the message names the file.
    """
    recordings = list({recording.key: recording for recording in recordings}.values())
    title = f"{name}-{kind}"
    _report_old(folder, title)
    with open_ledger(folder) as ledger:
        seen = ledger.look_up((recording.content() for recording in recordings), title, len(recordings))
    found = [(recording, each) for recording, each in zip(recordings, seen, strict=True) if each is not None]
    with open_cache(folder / f"{kind}-{fingerprint(encoder.part)}") as cache:
        _fill(cache, encoder, found, title, allow)
        places = list(
            zip((recording for recording, _ in found), cache.find(seen.digest for _, seen in found), strict=True)
        )
    by_key = {recording.key: place for recording, place in places}
    skipped = _skipped(recordings, by_key)
    report_skipped(title, skipped, len(recordings))
    return Encoded(
        ArrayStore(cache.folder, ((c.key, place) for c, place in places if place is not None and not place.problem)),
        {c.key: UNREADABLE if each is None else each.stamp for c, each in zip(recordings, seen, strict=True)},
        skipped,
        not skipped.reasons[_NOT_NOW],
    )


def _device(module: torch.nn.Module) -> torch.device:
    return next((t.device for t in module.state_dict().values()), torch.device("cpu"))


def _fill(
    cache: ArrayCache,
    encoder: BatchEncoder,
    recordings: list[tuple[Recording, Seen]],
    title: str,
    allow: Callable[[list[Recording]], None],
) -> None:
    """Compute and store the features or codes that the cache lacks; recordings of equal content are encoded once."""
    places = cache.find(seen.digest for _, seen in recordings)
    wanted = {
        seen.digest: (recording, seen)
        for (recording, seen), place in zip(recordings, places, strict=True)
        if place is None
    }
    if not wanted:
        return
    allow([recording for recording, _ in wanted.values()])
    if len(wanted) < len(recordings):
        logger.info("%s: %d of %d recordings are encoded, the others are cached", title, len(wanted), len(recordings))
    with tqdm(total=len(wanted), desc=title) as bar:
        for chunk in in_batches(wanted.values(), CHUNK):
            cache.add(_encoded(encoder, chunk))
            bar.update(len(chunk))


def _encoded(encoder: BatchEncoder, chunk: list[tuple[Recording, Seen]]) -> Iterator[tuple[bytes, Tensor | str]]:
    """Yield the digest of each recording with its features or codes, or with the reason why it cannot be encoded.

    Recordings that have changed since their digest was computed are omitted, since the digest is not theirs any more.
    """
    loaded: list[tuple[bytes, Tensor]] = []
    for recording, seen in chunk:
        try:
            wav: Tensor | str = recording.load(encoder.part.sample_rate)
        except Unusable as error:
            logger.warning("skipped: %s", error)
            if error.transient:
                continue
            wav = error.reason
        if recording.content().stamp() != seen.stamp:
            continue
        if isinstance(wav, str):
            yield seen.digest, wav
        else:
            loaded.append((seen.digest, wav))
        if sum(len(wav) for _, wav in loaded) > HELD:
            yield from _arrays(encoder, loaded)
            loaded = []
    yield from _arrays(encoder, loaded)


def _arrays(encoder: BatchEncoder, loaded: list[tuple[bytes, Tensor]]) -> Iterator[tuple[bytes, Tensor | str]]:
    for digest, array in encoder(loaded):
        yield digest, "refused" if array is None else array


def _skipped(recordings: list[Recording], places: dict[str, ArrayLocation | None]) -> Skipped:
    skipped = Skipped()
    for recording in recordings:
        place = places.get(recording.key)
        if place is None:  # not cached as unusable, so the next run tries again
            exists = recording.path is None or os.path.exists(recording.path)
            skipped.add(_NOT_NOW if exists else "missing", recording.path or recording.key)
        elif place.problem:
            skipped.add(place.problem, recording.path or recording.key)
    return skipped


def report_skipped(title: str, skipped: Skipped, recordings: int) -> None:
    """Warn of skipped recordings, if there are any, out of a number of recordings."""
    if skipped:
        logger.warning("%s: %d of %d recordings skipped: %s", title, skipped.total(), recordings, skipped)


@functools.cache
def _report_old(folder: Path, title: str) -> None:
    """Warn once about cache files of an earlier version, which did not store the digests of the recordings."""
    for file in folder.glob(f"{title}-*.arrow"):
        logger.warning("%s: arrays of an earlier version, which does not say of which recordings; delete it", file)
