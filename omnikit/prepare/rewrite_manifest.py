"""Rewrites a manifest with additional fields, shard by shard; the common part of `omnikit tokenize` and `synthesize`.

The content of a shard depends on its entries and the options alone, not on the process that writes it or on earlier
runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from omnikit.data.batched import in_batches
from omnikit.data.field_values import is_bytes, is_sound_struct
from omnikit.data.manifest_columns import AUDIO, Malformed, checked, entry_called, typed
from omnikit.data.manifest_reader import in_parquet
from omnikit.data.manifest_writer import FIELDS, ManifestWriter
from omnikit.data.parquet_manifest import DAMAGED, Damaged, Shard, check_alike, check_ids, read_shard, shard_files
from omnikit.data.skipped import Item, Remark
from omnikit.data.text_manifest import about, read_fields
from omnikit.option_ranges import COUNT
from omnikit.prepare.corpus_readers import parquet_parts
from omnikit.prepare.expected_size import ExpectedSize
from omnikit.prepare.reuse import FormerShard, digest_recordings
from omnikit.prepare.shards import (
    ManifestPart,
    Summary,
    fingerprint_of,
    problem_of_texts,
    read_if_current,
    remove_others,
    write_rows,
    write_with_note,
)
from omnikit.torchrun import Share

_OUTLINED = ("duration", "codec", "encoder")
SHARD_SIZE = 2048
"""Default minimum number of entries in a shard."""
VERSION = 2
"""Version of this code, increased when the same entries give other shards, so that shards are written again."""


@dataclass(frozen=True)
class Columns:
    """Names of the fields that a manifest has, and of those in which recordings are embedded as bytes."""

    names: tuple[str, ...]
    embedded: tuple[str, ...] = ()

    def with_more(self, names: Iterable[str], embedded: Iterable[str] = ()) -> Columns:
        """Return a copy of these column names with further fields added, in the order of `FIELDS`."""
        return self._of({*self.names, *names}, {*self.embedded, *embedded})

    def without(self, names: Iterable[str]) -> Columns:
        return self._of(set(self.names) - set(names), set(self.embedded) - set(names))

    @staticmethod
    def _of(names: set[str], embedded: set[str]) -> Columns:
        return Columns(tuple(n for n in FIELDS if n in names), tuple(n for n in AUDIO if n in embedded))


class ManifestTransform(ABC):
    """Abstract base class of the transformations of manifest entries that `rewrite` applies."""

    name: str
    """Name of the command, for the summary and the progress bar."""
    depends_on: tuple[object, ...]
    """Values, such as parts and options, on which the new entries depend besides the manifest's entries."""
    chunk: int
    """Number of entries that are transformed in one call of `rows`."""
    recordings: tuple[str, ...] = ()
    """Names of the recording fields from which new entries are computed; a changed recording invalidates its shard."""
    computed: tuple[str, ...] = ()
    """Names of the fields that depend on `recordings` and `depends_on` alone and are reused if both are unchanged."""

    @abstractmethod
    def columns(self, found: Columns) -> Columns:
        """Return the columns of the new shards, given those of the manifest; called once, before the first entry.

        Raises:
            ValueError: the manifest lacks a field that the options name.
        """

    def survey(self, manifest: Path) -> tuple[object, ...]:
        """Look at a whole manifest before its entries are transformed, and return what else the new entries depend on.

        A change of these values causes shards to be written again, but nothing to be computed again.
        """
        return ()

    @abstractmethod
    def rows(self, items: list[Item]) -> Iterator[Item | Remark]:
        """Yield the transformed manifest entries in the order of `items`, or the reason why one is skipped."""

    def expanded(self, item: Item) -> list[Item]:
        """Return the items that are transformed in place of a manifest item, such as itself and augmented copies of it.

        Raises:
            ValueError: the item cannot be copied.
        """
        return [item]

    def expected_size(self, found: Columns, new: Columns, parts: Sequence[ManifestPart]) -> ExpectedSize | None:
        """Return the estimated size of the shards of some parts; None if it is not known before they are computed.

        Args:
            found, new: columns of the manifest and of the shards.
        """
        return None

    def reads(self, item: Item) -> list[str]:
        """Return the names of the fields whose recordings must be read to compute the new fields of a manifest item."""
        return []


def rewrite(
    manifest: str | Path,
    save_folder: str | Path,
    step: ManifestTransform,
    *,
    shard_size: int = SHARD_SIZE,
    strict: bool = False,
) -> Summary:
    """Apply a transformation to a manifest and write the shards that are missing or out of date.

    Under torchrun, each process writes every `WORLD_SIZE`-th shard.

    Args:
        manifest: path of the manifest to read.
        save_folder: folder for the new shards, which form a manifest again.
        step: transformation of the entries.
        shard_size: minimum number of entries in a shard; a Parquet shard ends with the row group that reaches it.
        strict: whether the first unusable item is an error instead of being skipped.

    Returns:
        The summary of the shards of this process.

    Raises:
        ValueError: the manifest cannot be read, has no usable entry, or lies in the save folder; the disk is full, or
            has less space than the shards are expected to need.
    """
    manifest, save_folder = Path(manifest), Path(save_folder)
    COUNT.check("shard_size", shard_size)
    if save_folder.resolve() == (manifest if manifest.is_dir() else manifest.parent).resolve():
        raise ValueError(f"--save_folder {save_folder}: holds the manifest that is read; choose another")
    found, parts = read_parts(manifest, shard_size, step.recordings)
    columns = step.columns(found)
    surveyed = step.survey(manifest)
    share = Share.of_torchrun()
    which = f", process {share.rank + 1} of {share.processes}" if share.processes > 1 else ""
    total = Summary(step.name + which)
    shards = [
        _Shard.of(save_folder, part, step, columns, shard_size, surveyed, f"{step.name} {number + 1}/{len(parts)}")
        for number, part in enumerate(parts)
        if number % share.processes == share.rank
    ]
    done = [read_if_current(shard.path, shard.fingerprint, strict) for shard in shards]
    missing = [shard for shard, summary in zip(shards, done, strict=True) if summary is None]
    _check_space(save_folder, missing, step, found, columns, share)
    for shard, summary in zip(shards, done, strict=True):
        total.update(summary or shard.write(step, columns, strict))
    if share.rank == 0:
        remove_others(save_folder, {part.name for part in parts})
    if not total.rows and share.processes == 1:
        raise ValueError(f"{manifest}: no usable entry; {total}")
    return total


def read_parts(manifest: Path, shard_size: int, recordings: Sequence[str] = ()) -> tuple[Columns, list[ManifestPart]]:
    """Return the columns of a manifest, and its entries as parts, each of which becomes one shard.

    Args:
        shard_size: minimum number of entries in a part.
        recordings: names of the fields whose recordings, if they are files, count as sources of the parts.

    Raises:
        ValueError: the manifest cannot be read.
    """
    if in_parquet(manifest):
        return _parquet_parts(manifest, shard_size, recordings)
    items = list(read_fields(manifest))
    names = {name for item in items if not isinstance(item, Remark) for name in item}
    return Columns(()).with_more(names), [
        ManifestPart(
            f"{manifest.stem}-{number:04d}",
            [manifest],
            lambda rows=rows: map(_copy, rows),
            len(rows),
            lambda rows=rows: _paths(rows, recordings),
            outline=lambda rows=rows: rows,
            stored=lambda names, rows=rows: manifest.stat().st_size * len(rows) / len(items),
        )
        for number, rows in enumerate(in_batches(items, shard_size))
    ]


def _copy(item: Item | Remark) -> Item | Remark:
    return item if isinstance(item, Remark) else dict(item)


def _paths(rows: Iterable[Item | Remark], names: Sequence[str]) -> Iterator[str]:
    """Yield the paths of the recordings that entries have in the fields `names`."""
    for row in rows:
        if not isinstance(row, Remark):
            yield from (row[name] for name in names if isinstance(row.get(name), str))


def _parquet_parts(manifest: Path, shard_size: int, recordings: Sequence[str]) -> tuple[Columns, list[ManifestPart]]:
    columns, shards, parts = Columns(()), [], []
    for file in shard_files(manifest):
        try:
            shard = read_shard(file)
        except Damaged:  # its part yields a remark that reports the damage
            parts += parquet_parts(file, (), dict)
            continue
        shards.append(shard)
        columns = columns.with_more(*_fields_of(shard))
        parts += _parts_of(shard, shard_size, recordings)
    if shards:
        check_alike(shards)
        with about(manifest):
            check_ids(_ids(shards))
    return columns, parts


def _parts_of(shard: Shard, shard_size: int, recordings: Sequence[str]) -> list[ManifestPart]:
    """Return the parts of a Parquet manifest (ranges of its row groups), each with the files of recordings it reads.

    Embedded recordings are covered by the state of the file itself.
    """
    parts = parquet_parts(shard.file, tuple(shard.fields), _typing(shard), shard_size)
    parts = _with_outlines(parts, shard, shard_size)
    kinds = {name: shard.schema.field(name).type for name, field in shard.fields.items() if field in recordings}
    named = [name for name, kind in kinds.items() if not is_bytes(kind)]
    if not named:
        return parts
    only = replace(shard, fields={name: shard.fields[name] for name in named})
    paths = parquet_parts(shard.file, named, _typing(only), shard_size)
    fields = [shard.fields[name] for name in named]
    return [
        replace(part, recordings=lambda rows=rows: _paths(rows.items(), fields))
        for part, rows in zip(parts, paths, strict=True)
    ]


def _with_outlines(parts: list[ManifestPart], shard: Shard, shard_size: int) -> list[ManifestPart]:
    """Add functions that return the outline and the size of parts; all entries are taken to have each recording."""
    named = {field: name for name, field in shard.fields.items()}
    only = replace(shard, fields={named[field]: field for field in ("id", *_OUTLINED) if field in named})
    sounds = {field: b"" for field in AUDIO if field in named}
    outlines = parquet_parts(shard.file, tuple(only.fields), _typing(only), shard_size)

    def stored(part: ManifestPart, fields: Iterable[str]) -> float:
        return part.stored([named[field] for field in fields if field in named])

    def outline(part: ManifestPart) -> Iterator[Item | Remark]:
        return (item if isinstance(item, Remark) else item | sounds for item in part.items())

    return [
        replace(part, outline=partial(outline, brief), stored=partial(stored, part))
        for part, brief in zip(parts, outlines, strict=True)
    ]


def _fields_of(shard: Shard) -> tuple[list[str], list[str]]:
    """Return the fields of a shard, and those of them whose recordings are embedded as bytes."""
    kinds = {field: shard.schema.field(name).type for name, field in shard.fields.items()}
    sounds = [(field, kinds[field]) for field in AUDIO if field in kinds]
    return list(kinds), [field for field, kind in sounds if is_bytes(kind) or is_sound_struct(kind)]


def _ids(shards: Sequence[Shard]) -> Iterator[pa.ChunkedArray]:
    for shard in shards:
        name = next(name for name, field in shard.fields.items() if field == "id")
        with suppress(*DAMAGED):  # its part yields a remark that reports the damage
            yield pq.read_table(shard.file, columns=[name]).column(name)


def _typing(shard: Shard) -> Callable[[dict[str, Any]], Item]:
    def to_item(row: dict[str, Any]) -> Item:
        try:
            return checked(typed(row, shard.fields, shard.file.parent))
        except Malformed as bad:
            raise Malformed(f"{entry_called(row, shard.fields)}{bad}", bad.reason) from None

    return to_item


@dataclass(frozen=True)
class _Shard:
    """A shard to be written, and the fingerprint of what it is computed from."""

    path: Path
    part: ManifestPart
    fingerprint: str
    title: str

    @classmethod
    def of(
        cls,
        folder: Path,
        part: ManifestPart,
        step: ManifestTransform,
        columns: Columns,
        shard_size: int,
        surveyed: tuple[object, ...],
        title: str,
    ) -> _Shard:
        fingerprint = fingerprint_of(part, VERSION, shard_size, columns, *step.depends_on, *surveyed)
        return cls(folder / f"{part.name}.parquet", part, fingerprint, title)

    def write(self, step: ManifestTransform, columns: Columns, strict: bool) -> Summary:
        """Write the shard and its note, and return its summary."""
        earlier = FormerShard.read(self.path, repr((VERSION, columns, step.depends_on)), step.computed)
        note = earlier.new_note()
        write = partial(_write, self.path, self.part, step, columns, strict, self.title, earlier, note)
        return write_with_note(self.path, self.fingerprint, write, note)


def _check_space(
    folder: Path, missing: Sequence[_Shard], step: ManifestTransform, found: Columns, new: Columns, share: Share
) -> None:
    """Refuse a disk that is too small for the missing shards; shards that they replace give back their space."""
    expected = step.expected_size(found, new, [shard.part for shard in missing]) if missing else None
    if expected is not None:
        replaced = sum(shard.path.stat().st_size for shard in missing if shard.path.is_file())
        expected = replace(expected, size=max(0.0, expected.size - replaced))
        expected.check(folder, share.processes, announce=share.rank == 0)


def _write(
    path: Path,
    part: ManifestPart,
    step: ManifestTransform,
    columns: Columns,
    strict: bool,
    title: str,
    earlier: FormerShard,
    note: dict,
) -> Summary:
    with ManifestWriter(path, columns.names, columns.embedded) as writer:
        some = in_batches(part.items(), step.chunk)
        batches = ((len(batch), _new_entries(batch, step, earlier, note)) for batch in some)
        return write_rows(writer, Summary(part.name), batches, total=part.rows, title=title, strict=strict)


def _new_entries(
    batch: Sequence[Item | Remark], step: ManifestTransform, earlier: FormerShard, note: dict
) -> Iterator[Item | Remark]:
    """Yield the transformed entries of a batch, after the remarks about its unusable entries."""
    items = []
    for item in batch:
        if isinstance(item, Remark):
            yield item
        elif problem := problem_of_texts(item):
            yield Remark(problem, item["id"])
        else:
            items += step.expanded(item)
    if step.recordings:
        digests = digest_recordings(items, step.reads)
        earlier.fill(items, digests)
        note["recordings"] |= digests
    yield from step.rows(items)


def check_recordings(flag: str, names: Sequence[str]) -> None:
    """Raise `ValueError` with the choices if one of the names given for a flag is not a field of recordings."""
    unknown = [name for name in names if name not in AUDIO]
    if unknown:
        raise ValueError(f"{flag} {','.join(names)}: no such recording: {unknown[0]!r} (choices: {', '.join(AUDIO)})")
