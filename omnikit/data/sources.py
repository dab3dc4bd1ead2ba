"""Reads the `sources` of a recipe: manifest entries, the tasks that they serve, and their texts, features and codes."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from omnikit.data.array_cache import ArrayStore, fingerprint
from omnikit.data.arrow_cache import digest_of_files
from omnikit.data.augment import SeededAugment
from omnikit.data.digest_ledger import open_ledger
from omnikit.data.encode_recordings import cached_features, code_encoder, encode, feature_encoder
from omnikit.data.encoded_entries import FACTS, EncodedEntries, Found, found_by_key, live_frames, look_up
from omnikit.data.encoding_limit import EncodingLimit, estimated_hours
from omnikit.data.live_features import LongestFrames, can_be_live
from omnikit.data.manifest_reader import (
    AUDIO,
    EntrySubset,
    ListedEntries,
    ManifestEntry,
    TableEntries,
    check_codec,
    codes_field,
    in_parquet,
    read_manifest,
    recording_field,
)
from omnikit.data.parquet_manifest import shard_files
from omnikit.data.samples import INTERRUPTED, Source, codec_name
from omnikit.data.source_index import (
    CODES,
    CODES1,
    FEATURES,
    FOREIGN,
    INDEX,
    RECORDINGS,
    TURN,
    PartMaker,
    SourceIndex,
    build_index,
    index_key,
)
from omnikit.files import remove
from omnikit.hparams.recipe import names_of
from omnikit.interfaces import AudioEncoder
from omnikit.llms.tokenizers import tokenizer_fingerprint
from omnikit.model import OmniLM
from omnikit.tasks import TASKS, Task

logger = logging.getLogger(__name__)
AUTO, CACHED, ON_THE_FLY = "auto", "cached", "on_the_fly"
"""Choices for when the frozen encoder computes features: once, to be cached on disk, or in each training step; `AUTO`
is `ON_THE_FLY` on a GPU for more than `LIVE_HOURS` without stored features, and `CACHED` otherwise."""
LIVE_HOURS = 500
CHOOSING = ("limit", "without_held_out", "only_held_out")
"""Options of a source that choose some of its entries."""
TABLES = "tables"
"""Name of the folder in the cache folder that holds memory-mapped copies of Parquet manifests."""


@dataclass(frozen=True)
class _Entries:
    """The entries of one source of a recipe with their index, before features and codes are looked up."""

    name: str
    options: dict[str, Any]
    tasks: tuple[Task, ...]
    entries: TableEntries | ListedEntries | EntrySubset
    index: SourceIndex

    def without_features(self) -> np.ndarray:
        """Return the sorted indices of entries with a recording of the question, but without features of the encoder.
        """
        return np.flatnonzero(self.spoken() & (self.index.column(FEATURES) < 0) & has_recording(self.index, "a1"))

    def spoken(self) -> np.ndarray:
        """Return a mask [entries] of the entries whose question a sample may give as speech."""
        if any(task.given == "speech" for task in self.tasks):
            return np.ones(len(self.index), bool)
        mixed = self.options.get("mixed", 0) > 0 and not all(task.repeats for task in self.tasks)
        return mixed & (self.index.column(TURN) >= 0)

    def hours_without_features(self) -> float:
        """Return the total length of these recordings; unknown lengths are estimated from some of their headers."""
        wanted = self.without_features()
        seconds = self.index.seconds()[wanted]
        unknown = wanted[~(seconds > 0)].tolist()
        return estimated_hours(float(seconds[seconds > 0].sum()), unknown, lambda entry: self.entries[entry].a1)


def serves(options: Mapping[str, Any], task: Task, tasks: Mapping[str, float]) -> bool:
    """Return whether a source is used for one of its tasks: one with a weight in the mix, or any with `every_stage`."""
    return bool(options.get("every_stage")) or tasks.get(task.name, 0) > 0


def read_sources(
    sources: dict[str, dict[str, Any] | None],
    model: OmniLM,
    *,
    tasks: dict[str, float],
    cache_folder: str | Path,
    features: str = AUTO,
    max_encode_hours: float | None = None,
    augment: SeededAugment | None = None,
) -> list[Source]:
    """Read the sources of a recipe, and compute the encoder features and codes that their tasks need.

    Args:
        sources: mapping from names to options: `manifest: FILE or FOLDER`, `tasks: [..]` that it may serve, and
            optionally `limit: N` for N entries chosen at random, `answers: FILE` with recordings of answers, and
            `without_held_out: N` or `only_held_out: N`, see `read_entries`; for dialogs `mixed` and `interrupted`, see
            `Source`. A source that is None is ignored.
        tasks: weight of each task in the mix; of tasks of weight 0 no sample, feature or code is computed, unless the
            source has the option `every_stage: true`.
        cache_folder: folder for the indices of sources, features, codes and copies of Parquet manifests.
        features: `AUTO`, `CACHED` or `ON_THE_FLY`.
        max_encode_hours: maximum hours of recordings whose features or codes may be computed here; None = no limit.
        augment: effects that change the recordings of questions before the training step computes their features.

    Raises:
        ValueError: a missing file, an unknown task, codes or features of other parts without the recordings, more hours
            to encode than `max_encode_hours`, an encoder that cannot be used on the fly, or augmentation of recordings
            whose features are cached or stored.
    """
    _check_choice(features, model.encoder)
    limit = EncodingLimit(max_encode_hours, _tokenize_flags(model))
    reader = _Reader(model, Path(cache_folder), tasks, limit, augment)
    read = [reader.entries(name, options) for name, options in sources.items() if options]
    live = features == ON_THE_FLY or (features == AUTO and _better_live(model, read))
    if augment is not None:
        _check_augment(read, live)
    return [reader.source(each, live) for each in read]


def _check_augment(read: Sequence[_Entries], live: bool) -> None:
    """Refuse augmentation if no features are computed on the fly, and warn of stored features, which are not augmented.
    """
    other = "or write augmented copies: omnikit tokenize MANIFEST --copies 2 --augment NAME"
    if not live:
        raise ValueError(f"augment: needs --features {ON_THE_FLY}, since cached features never change; {other}")
    if not any(len(each.without_features()) for each in read):
        raise ValueError(f"augment: no source has recordings whose features are computed on the fly; {other}")
    for each in read:
        stored = int((each.index.column(FEATURES) >= 0).sum())
        if stored and any(task.given == "speech" for task in each.tasks):
            logger.warning("sources.%s: %d entries have stored features, which are not augmented", each.name, stored)


def _tokenize_flags(model: OmniLM) -> str:
    """Return the flags with which `omnikit tokenize` is to encode recordings for a system."""
    names = names_of(model.recipe) if getattr(model, "recipe", "") else {}
    return "".join(f" --{kind} {names[kind]}" for kind in ("codec", "encoder") if kind in names)


def verify_cache(cache_folder: str | Path) -> None:
    """Mark all digests in a cache folder as untrusted.

    The content of every recording and manifest is then read and compared when it is next used, even if its size and
    modification time are unchanged.

    Raises:
        ValueError: the cache cannot be written.
    """
    for folder in (Path(cache_folder), Path(cache_folder) / TABLES):
        with open_ledger(folder) as ledger:
            ledger.distrust()
    for facts in (Path(cache_folder) / INDEX).glob(f"*/*/{FACTS}"):
        remove(facts)


def _check_choice(features: str, encoder: AudioEncoder) -> None:
    if features not in (AUTO, CACHED, ON_THE_FLY):
        raise ValueError(f"features: {features}; choices: {AUTO}, {CACHED}, {ON_THE_FLY}")
    if features == ON_THE_FLY and not can_be_live(encoder):
        name = type(encoder).__name__
        raise ValueError(f"features: {ON_THE_FLY}: the encoder {name} has no num_frames; choices: {CACHED}")


def _better_live(model: OmniLM, read: Sequence[_Entries]) -> bool:
    """Return whether features are too many to store but quickly computed, and log it."""
    if model.device.type != "cuda" or not can_be_live(model.encoder):
        return False
    hours = sum(each.hours_without_features() for each in read)
    if hours > LIVE_HOURS:
        words = "%.0f hours of recordings have no stored features: they are computed in each step (features: %s)"
        logger.info(words, hours, ON_THE_FLY)
    return hours > LIVE_HOURS


def read_entries(
    name: str, options: dict[str, Any], cache_folder: str | Path
) -> TableEntries | ListedEntries | EntrySubset:
    """Return the manifest entries of one source.

    N entries, chosen at random, can be held out for validation: `without_held_out: N` returns all other entries, and
    `only_held_out: N` returns these N. A dialog counts as one entry, and its turns stay together. So do an entry and
    its augmented copies, which `only_held_out` leaves out.

    Args:
        name: name of the source, for messages.
        options: options of the source, see `read_sources`.

    Raises:
        ValueError: no manifest is named, it cannot be read, or it does not have more than N entries.
    """
    if "manifest" not in options:
        raise ValueError(f"sources.{name}: no manifest; it has {', '.join(options) or 'nothing'}")
    entries = read_manifest(options["manifest"], Path(cache_folder) / TABLES, options.get("answers"))
    if not any(options.get(key) is not None for key in CHOOSING):
        return entries
    units = entries.units()
    chosen: Sequence[int] = range(len(entries) if units is None else units.count)
    for key in ("without_held_out", "only_held_out"):
        if (count := options.get(key)) is not None:
            word = "dialogs" if units is not None and units.dialogs else "entries"
            chosen = _parted(f"sources.{name}.{key}", key, count, len(chosen), word)
    limit = options.get("limit")
    if limit is not None and limit < len(chosen):
        chosen = random.Random(0).sample(chosen, limit)
    if isinstance(chosen, range):
        return entries
    if units is not None:
        chosen = units.entries(chosen, copies=options.get("only_held_out") is None)
    return EntrySubset(entries, chosen)


def _parted(where: str, key: str, count: int, units: int, word: str) -> list[int]:
    """Return `count` randomly chosen numbers below `units`, sorted, or all others, depending on the option `key`.

    Args:
        where: name of the option in the recipe, for the error.
        word: plural of what the numbers stand for, for the error.
    """
    if not 0 <= count < units:
        raise ValueError(f"{where}: {count}; the manifest has {units} {word}")
    held = sorted(random.Random(1).sample(range(units), count))
    return held if key == "only_held_out" else sorted(set(range(units)).difference(held))


def _version(options: dict[str, Any], cache_folder: Path) -> list[str]:
    """Return the digests of the manifest's and the answers' files of a source, which `read_entries` has read."""
    paths = [Path(options[key]) for key in ("manifest", "answers") if options.get(key) is not None]
    files = [shard_files(path) if in_parquet(path) else [path] for path in paths]
    return [digest_of_files(each, cache_folder / TABLES, str(each[0])) for each in files]


class _Reader:
    """Reads sources for the parts of one system, whose fingerprints are computed once.

    Args:
        limit: limit of the hours of recordings that may be encoded.
        augment: effects that change recordings whose features are computed on the fly.
    """

    def __init__(
        self,
        model: OmniLM,
        cache_folder: Path,
        tasks: dict[str, float],
        limit: EncodingLimit,
        augment: SeededAugment | None = None,
    ):
        self.model, self.folder, self.tasks, self.limit, self.augment = model, cache_folder, tasks, limit, augment
        self.codec = codec_name(model)

    @cached_property
    def tokenizer(self) -> str:
        return tokenizer_fingerprint(self.model.llm.tokenizer)

    @cached_property
    def codec_print(self) -> str:
        return fingerprint(self.model.codec)

    @cached_property
    def encoder(self) -> str:
        return fingerprint(self.model.encoder)

    def entries(self, name: str, options: dict[str, Any]) -> _Entries:
        """Read the manifest of a source and index its entries."""
        for task in options["tasks"]:
            if task not in TASKS:
                raise ValueError(f"sources.{name}.tasks: no such task {task!r}; choices: {', '.join(TASKS)}")
        wanted = tuple(task for task in map(TASKS.get, options["tasks"]) if serves(options, task, self.tasks))
        if not wanted:
            return _Entries(name, options, (), ListedEntries(), SourceIndex(()))
        entries = read_entries(name, options, self.folder)
        encoder = self.encoder if entries.have_features else None
        chosen = [options.get(key) for key in CHOOSING]
        key = index_key(_version(options, self.folder), chosen, self.tokenizer, self.codec, encoder)
        make = PartMaker(self.model.llm.tokenizer, self.codec, encoder)
        return _Entries(name, options, wanted, entries, build_index(entries, make, self.folder / INDEX / key, name))

    def source(self, read: _Entries, live: bool) -> Source:
        """Look up the features and codes of a source's recordings, and compute those that are missing."""
        wanted = read.without_features()
        self._check_features(read)
        features = frames = None
        if len(wanted) and live:
            frames = self._live_frames(read, wanted)
        elif len(wanted):
            features = self._encoded(read, "features", "a1", wanted)
        codes = self._codes(read)
        tasks, encoder = tuple(task.name for task in read.tasks), None if frames is None else self.model.encoder
        mixing = read.options.get("mixed", 0.0), read.options.get("interrupted", INTERRUPTED)
        augment = None if frames is None else self.augment
        return Source(
            read.entries, tasks, read.index, features, codes, encoder, frames, read.name, *mixing, augment=augment
        )

    def _live_frames(self, read: _Entries, wanted: np.ndarray) -> np.ndarray:
        encoder, name = self.model.encoder, f"lengths-{self.encoder}"
        if self.augment is not None:
            effects = self.augment.augment
            encoder, name = LongestFrames(encoder, effects), f"{name}-{effects.fingerprint}"
        return live_frames(read.index.folder / name, read.entries, wanted, read.index.seconds(), encoder, read.name)

    def _codes(self, read: _Entries) -> dict[str, EncodedEntries]:
        """Return the codes of recordings of answers that have no codes of the system's codec, by field."""
        found = {}
        for task in read.tasks:
            if task.speaks and codes_field(task) not in found:
                name, recording = codes_field(task), recording_field(task)
                stored, recorded = read.index.column(_COLUMN[name]), has_recording(read.index, recording)
                self._check_codes(read, name, stored, recorded)
                wanted = np.flatnonzero((stored < 0) & recorded)
                if len(wanted):
                    found[name] = self._encoded(read, "codes", recording, wanted)
        return found

    def _encoded(self, read: _Entries, kind: str, recording: str, wanted: np.ndarray) -> EncodedEntries:
        """Return the features or codes of the recordings `a1` or `a2` of some entries."""
        codes = kind == "codes"
        encoder = code_encoder(self.model.codec) if codes else feature_encoder(self.model.encoder)

        def find(entries: list[ManifestEntry]) -> Found:
            recordings = [getattr(entry, recording) for entry in entries]
            seconds = {
                each.key: entry.duration if recording == "a1" or entry.a1 is None else None
                for each, entry in zip(recordings, entries, strict=True)
            }
            allow = partial(self.limit.take, read.name, read.options["manifest"], seconds)
            return found_by_key(lambda some: encode(encoder, some, self.folder, kind, read.name, allow), recordings)

        folder = read.index.folder / f"{kind}-{recording}-{self.codec_print if codes else self.encoder}"
        return look_up(folder, read.entries, wanted, f"{read.name}-{kind}", find)

    def _check_features(self, read: _Entries) -> None:
        """Raise `ValueError` if an entry holds another encoder's features and no recording."""
        lost = read.spoken() & (read.index.column(FEATURES) == FOREIGN) & ~has_recording(read.index, "a1")
        if lost.any():
            entry = read.entries[int(lost.argmax())]
            raise ValueError(
                f"sources.{read.name}: entry {entry.id}: holds features of the encoder {entry.features.encoder}, but "
                f"the system's is {self.encoder}; compute them again (omnikit tokenize), or give the recordings (a1)"
            )

    def _check_codes(self, read: _Entries, name: str, stored: np.ndarray, recorded: np.ndarray) -> None:
        """Raise `ValueError` if an entry has another codec's codes and no recording, or codes of other codebooks."""
        lost, own = (stored == FOREIGN) & ~recorded, stored >= 0
        for some in (lost, own):
            if some.any():  # one entry stands for all codes of the codec; loading is slow
                codes = getattr(read.entries[int(some.argmax())], name)
                check_codec(codes, self.model.codec, self.codec, f"sources.{read.name}")


_COLUMN = {"codes1": CODES1, "codes": CODES}


def has_recording(index: SourceIndex, name: str) -> np.ndarray:
    """Return a mask [entries] of the entries with a recording `a1` or `a2`."""
    return (index.column(RECORDINGS) >> AUDIO.index(name) & 1).astype(bool)


class _Features:
    """The encoder features of manifest entries, stored in the manifest or cached, by entry."""

    def __init__(self, encoder: str | None, cached: ArrayStore | None):
        self.encoder, self.cached = encoder, cached

    def _stored(self, entry: ManifestEntry) -> bool:
        return entry.features is not None and entry.features.encoder == self.encoder

    def __contains__(self, entry: ManifestEntry) -> bool:
        return self._stored(entry) or (self.cached is not None and entry.a1 is not None and entry.a1.key in self.cached)

    def __getitem__(self, entry: ManifestEntry) -> Tensor:
        """Return the features [T, D] (float16) of an entry that has some."""
        return entry.features.load() if self._stored(entry) else self.cached[entry.a1.key]


def read_features(model: OmniLM, entries: Sequence[ManifestEntry], cache_folder: str | Path, name: str) -> _Features:
    """Return the encoder features of a few manifest entries, computing those of recordings that the cache lacks.

    Args:
        name: name of the source, for messages.
    """
    encoder = fingerprint(model.encoder) if any(entry.features is not None for entry in entries) else None
    others = [e.a1 for e in entries if e.a1 is not None and (e.features is None or e.features.encoder != encoder)]
    return _Features(encoder, cached_features(model.encoder, others, cache_folder, name) if others else None)
