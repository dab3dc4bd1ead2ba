"""Reads the `sources` of a recipe: manifest entries, the tasks that they serve, and their features and codes."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnikit.data.array_cache import fingerprint
from omnikit.data.digest_ledger import open_ledger
from omnikit.data.encode_recordings import cached_codes, cached_features
from omnikit.data.manifest_reader import EntrySubset, ManifestEntry, Recording, check_codec, read_manifest
from omnikit.data.samples import Source, SpeechInputs, codec_name
from omnikit.data.skipped import Skipped
from omnikit.interfaces import AudioEncoder
from omnikit.model import OmniLM
from omnikit.tasks import TASKS, Task

logger = logging.getLogger(__name__)
CACHED, ON_THE_FLY = "cached", "on_the_fly"
"""Choices for when the frozen encoder computes features: once, to be cached on disk, or in each training step."""
TABLES = "tables"
"""Name of the folder in the cache folder that holds memory-mapped copies of Parquet manifests."""


def read_sources(
    sources: dict[str, dict[str, Any] | None],
    model: OmniLM,
    *,
    tasks: dict[str, float],
    cache_folder: str | Path,
    features: str = CACHED,
) -> list[Source]:
    """Read the sources of a recipe, and compute the encoder features and codes that their tasks need.

    Args:
        sources: mapping from names to options: `manifest: FILE or FOLDER`, `tasks: [..]` that it may serve, and
            optionally `limit: N` for N entries chosen at random, `answers: FILE` with recordings of answers, and
            `without_held_out: N` or `only_held_out: N`, see `read_entries`. A source that is None is ignored.
        tasks: weight of each task in the mix; features and codes that only tasks of weight 0 need are not computed.
        cache_folder: folder for features, codes and memory-mapped copies of Parquet manifests.
        features: `CACHED` or `ON_THE_FLY`.

    Raises:
        ValueError: a missing file, an unknown task, codes or features of other parts without the recordings, or an
            encoder that cannot be used on the fly.
    """
    live = _live(features, model.encoder)
    return [_read(name, options, model, tasks, cache_folder, live) for name, options in sources.items() if options]


def verify_cache(cache_folder: str | Path) -> None:
    """Mark all digests in a cache folder as untrusted.

    The content of every recording and Parquet manifest is then read and compared when it is next used, even if its size
    and modification time are unchanged.

    Raises:
        ValueError: the cache cannot be written.
    """
    for folder in (Path(cache_folder), Path(cache_folder) / TABLES):
        with open_ledger(folder) as ledger:
            ledger.distrust()


def _live(features: str, encoder: AudioEncoder) -> bool:
    if features not in (CACHED, ON_THE_FLY):
        raise ValueError(f"features: {features}; choices: {CACHED}, {ON_THE_FLY}")
    if features == ON_THE_FLY and type(encoder).num_frames is AudioEncoder.num_frames:
        name = type(encoder).__name__
        raise ValueError(f"features: {ON_THE_FLY}: the encoder {name} has no num_frames; choices: {CACHED}")
    return features == ON_THE_FLY


def read_entries(name: str, options: dict[str, Any], cache_folder: str | Path) -> Sequence[ManifestEntry]:
    """Return the manifest entries of one source.

    N entries, chosen at random, can be held out for validation: `without_held_out: N` returns all other entries, and
    `only_held_out: N` returns these N.

    Args:
        name: name of the source, for messages.
        options: options of the source, see `read_sources`.

    Raises:
        ValueError: no manifest is named, it cannot be read, or it does not have more than N entries.
    """
    if "manifest" not in options:
        raise ValueError(f"sources.{name}: no manifest; it has {', '.join(options) or 'nothing'}")
    entries = read_manifest(options["manifest"], Path(cache_folder) / TABLES, options.get("answers"))
    chosen: Sequence[int] = range(len(entries))
    for key in ("without_held_out", "only_held_out"):
        if (count := options.get(key)) is not None:
            chosen = _parted(name, key, count, len(entries))
    limit = options.get("limit")
    if limit is not None and limit < len(chosen):
        chosen = random.Random(0).sample(chosen, limit)
    return entries if isinstance(chosen, range) else EntrySubset(entries, chosen)


def _parted(name: str, key: str, count: int, entries: int) -> list[int]:
    """Return the sorted indices of `count` randomly chosen entries, or of all others, depending on the option `key`."""
    if not 0 <= count < entries:
        raise ValueError(f"sources.{name}.{key}: {count}; the manifest has {entries} entries")
    held = sorted(random.Random(1).sample(range(entries), count))
    return held if key == "only_held_out" else sorted(set(range(entries)).difference(held))


def _read(
    name: str, options: dict[str, Any], model: OmniLM, tasks: dict[str, float], cache_folder: str | Path, live: bool
) -> Source:
    for task in options["tasks"]:
        if task not in TASKS:
            raise ValueError(f"sources.{name}.tasks: no such task {task!r}; choices: {', '.join(TASKS)}")
    wanted = [TASKS[t] for t in options["tasks"] if tasks.get(t, 0) > 0]
    if not wanted:
        return Source([], ())
    entries = read_entries(name, options, cache_folder)
    # tasks with text answers need no codes: their entries, which can be millions, are not iterated over
    spoken = _with_recordings(_to_encode(entries, [task for task in wanted if task.speaks], model, f"sources.{name}"))
    return Source(
        entries,
        tuple(task.name for task in wanted),
        read_features(model, entries, cache_folder, name, live)
        if any(task.given == "speech" for task in wanted)
        else SpeechInputs(),
        cached_codes(model.codec, spoken, cache_folder, name) if spoken else None,
        name,
    )


def read_features(
    model: OmniLM, entries: Sequence[ManifestEntry], cache_folder: str | Path, name: str, live: bool = False
) -> SpeechInputs:
    """Return the encoder features of manifest entries that have features or a recording, computing missing ones.

    Args:
        name: name of the source, for messages.
        live: whether the training step computes features; then recordings are only checked.

    Raises:
        ValueError: an entry holds another encoder's features and no recording.
    """
    encoder, recordings, skipped = None, [], Skipped()
    in_step = SpeechInputs(live=model.encoder)
    for entry in entries:
        if entry.features is not None and encoder is None:
            encoder = fingerprint(model.encoder)
        if entry.features is not None and entry.features.encoder == encoder:
            continue
        if entry.a1 is not None and live:
            expected = in_step.expected(entry)
            if isinstance(expected, str):
                skipped.add(expected, entry.id)
        elif entry.a1 is not None:
            recordings.append(entry.a1)
        elif entry.features is not None:
            raise ValueError(
                f"sources.{name}: entry {entry.id}: holds features of the encoder {entry.features.encoder}, but the "
                f"system's is {encoder}; compute them again (omnikit tokenize), or give the recordings (a1)"
            )
    if skipped:
        logger.warning("%s: %d of %d recordings skipped: %s", name, skipped.total(), len(entries), skipped)
    if live:
        return SpeechInputs(encoder, live=model.encoder)
    return SpeechInputs(encoder, cached_features(model.encoder, recordings, cache_folder, name) if recordings else None)


def _to_encode(
    entries: Sequence[ManifestEntry], tasks: list[Task], model: OmniLM, where: str
) -> list[Recording | None]:
    """Return the recordings of answers whose codes must be computed: entries without codes of the system's codec.

    Raises:
        ValueError: an entry holds another codec's codes and no recording.
    """
    codec, own, recordings = codec_name(model), None, []
    for task in tasks:
        for entry in entries:
            codes, recording = entry.target_codes(task), entry.target_recording(task)
            if codes is None or (codes.codec != codec and recording is not None):
                recordings.append(recording)
            elif own is None or codes.codec != codec:
                check_codec(codes, model.codec, codec, where)  # checks one entry for all of the codec; loading is slow
                own = codes
    return recordings


def _with_recordings(recordings: list[Recording | None]) -> list[Recording]:
    return [recording for recording in recordings if recording is not None]
