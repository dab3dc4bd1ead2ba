"""From a manifest to one with more fields, shard by shard: what `omnikit tokenize` and `omnikit synthesize` share.

A shard follows from its rows of the manifest and from the options alone, not from when or by whom it was made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
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

SHARD_SIZE = 2048
VERSION = 2
"""Goes up when the same rows make other shards, so that they are made again."""


@dataclass(frozen=True)
class Columns:
    """The fields of a manifest, and in which of them recordings are bytes."""

    names: tuple[str, ...]
    embedded: tuple[str, ...] = ()

    def with_more(self, names: Iterable[str], embedded: Iterable[str] = ()) -> Columns:
        """And these."""
        return self._of({*self.names, *names}, {*self.embedded, *embedded})

    def without(self, names: Iterable[str]) -> Columns:
        return self._of(set(self.names) - set(names), set(self.embedded) - set(names))

    @staticmethod
    def _of(names: set[str], embedded: set[str]) -> Columns:
        return Columns(tuple(n for n in FIELDS if n in names), tuple(n for n in AUDIO if n in embedded))


class ManifestTransform(ABC):
    """What is done with the rows."""

    name: str
    """Of the command, for the summary."""
    depends_on: tuple[object, ...]
    """What the rows depend on but for those of the manifest."""
    chunk: int
    """Rows that are worked on together."""
    recordings: tuple[str, ...] = ()
    """Fields whose recordings rows are computed from; shards are made again when one of these files changes."""
    computed: tuple[str, ...] = ()
    """Fields that follow from these recordings and `depends_on`: where a recording is unchanged they are kept."""

    @abstractmethod
    def columns(self, found: Columns) -> Columns:
        """The fields of the manifest -> those of the shards. Called once, before the first row.

        Raises:
            ValueError: a field that the options name is not there.
        """

    @abstractmethod
    def rows(self, items: list[Item]) -> Iterator[Item | Remark]:
        """Rows -> rows in their order, or why there is none."""

    def reads(self, item: Item) -> list[str]:
        """Return those of the fields `recordings` from which fields of this item are computed."""
        return []


def rewrite(
    manifest: str | Path,
    save_folder: str | Path,
    step: ManifestTransform,
    *,
    shard_size: int = SHARD_SIZE,
    strict: bool = False,
) -> Summary:
    """Write the shards that are not there yet; under torchrun, those of this process: every `WORLD_SIZE`-th.

    Args:
        shard_size: of a shard, at least: of Parquet, a shard ends with the row group that makes it full.
        strict: the first thing that makes no row is an error.

    Raises:
        ValueError: the manifest cannot be read, gives no row, or stands in the save folder; the disk is full.
    """
    manifest, save_folder = Path(manifest), Path(save_folder)
    COUNT.check("shard_size", shard_size)
    if save_folder.resolve() == (manifest if manifest.is_dir() else manifest.parent).resolve():
        raise ValueError(f"--save_folder {save_folder}: holds the manifest that is read; choose another")
    found, parts = read_parts(manifest, shard_size, step.recordings)
    columns = step.columns(found)
    share = Share.of_torchrun()
    which = f", process {share.rank + 1} of {share.processes}" if share.processes > 1 else ""
    total = Summary(step.name + which)
    for number, part in enumerate(parts):
        if number % share.processes == share.rank:
            title = f"{step.name} {number + 1}/{len(parts)}"
            total.update(_shard(save_folder, part, step, columns, shard_size, strict, title))
    if share.rank == 0:
        remove_others(save_folder, {part.name for part in parts})
    if not total.rows and share.processes == 1:
        raise ValueError(f"{manifest}: no usable row; {total}")
    return total


def read_parts(manifest: Path, shard_size: int, recordings: Sequence[str] = ()) -> tuple[Columns, list[ManifestPart]]:
    """The fields of a manifest, and its rows as parts that become a shard each.

    Args:
        recordings: names of recordings whose files, where rows name such, count as sources of the part.

    Raises:
        ValueError: see `rewrite`.
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
        )
        for number, rows in enumerate(in_batches(items, shard_size))
    ]


def _copy(item: Item | Remark) -> Item | Remark:
    return item if isinstance(item, Remark) else dict(item)


def _paths(rows: Iterable[Item | Remark], names: Sequence[str]) -> Iterator[str]:
    """The files of the recordings that rows name."""
    for row in rows:
        if not isinstance(row, Remark):
            yield from (row[name] for name in names if isinstance(row.get(name), str))


def _parquet_parts(manifest: Path, shard_size: int, recordings: Sequence[str]) -> tuple[Columns, list[ManifestPart]]:
    columns, shards, parts = Columns(()), [], []
    for file in shard_files(manifest):
        try:
            shard = read_shard(file)
        except Damaged:  # its part is a remark that says so
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
    """The parts of a shard; recordings that stand in it as bytes are its own content."""
    parts = parquet_parts(shard.file, tuple(shard.fields), _typing(shard), shard_size)
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


def _fields_of(shard: Shard) -> tuple[list[str], list[str]]:
    """The fields of a shard, and the recordings among them that are bytes, with paths or without."""
    kinds = {field: shard.schema.field(name).type for name, field in shard.fields.items()}
    sounds = [(field, kinds[field]) for field in AUDIO if field in kinds]
    return list(kinds), [field for field, kind in sounds if is_bytes(kind) or is_sound_struct(kind)]


def _ids(shards: Sequence[Shard]) -> Iterator[pa.ChunkedArray]:
    for shard in shards:
        name = next(name for name, field in shard.fields.items() if field == "id")
        with suppress(*DAMAGED):  # its part is a remark that says so
            yield pq.read_table(shard.file, columns=[name]).column(name)


def _typing(shard: Shard) -> Callable[[dict[str, Any]], Item]:
    def to_item(row: dict[str, Any]) -> Item:
        try:
            return checked(typed(row, shard.fields, shard.file.parent))
        except Malformed as bad:
            raise Malformed(f"{entry_called(row, shard.fields)}{bad}", bad.reason) from None

    return to_item


def _shard(
    folder: Path,
    part: ManifestPart,
    step: ManifestTransform,
    columns: Columns,
    shard_size: int,
    strict: bool,
    title: str,
) -> Summary:
    path = folder / f"{part.name}.parquet"
    fingerprint = fingerprint_of(part, VERSION, shard_size, columns, *step.depends_on)
    summary = read_if_current(path, fingerprint, strict)
    if summary is not None:
        return summary
    earlier = FormerShard.read(path, repr((VERSION, columns, step.depends_on)), step.computed)
    note = earlier.new_note()
    return write_with_note(
        path, fingerprint, lambda: _write(path, part, step, columns, strict, title, earlier, note), note
    )


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
        batches = ((len(batch), _made(batch, step, earlier, note)) for batch in in_batches(part.items(), step.chunk))
        return write_rows(writer, Summary(part.name), batches, total=part.rows, title=title, strict=strict)


def _made(
    batch: Sequence[Item | Remark], step: ManifestTransform, earlier: FormerShard, note: dict
) -> Iterator[Item | Remark]:
    """What stands between usable rows is told first."""
    items = []
    for item in batch:
        if isinstance(item, Remark):
            yield item
        elif problem := problem_of_texts(item):
            yield Remark(problem, item["id"])
        else:
            items.append(item)
    if step.recordings:
        digests = digest_recordings(items, step.reads)
        earlier.fill(items, digests)
        note["recordings"] |= digests
    yield from step.rows(items)


def check_recordings(flag: str, names: Sequence[str]) -> None:
    """Raises `ValueError` naming the choices where one is no recording of `manifest_columns.AUDIO`."""
    unknown = [name for name in names if name not in AUDIO]
    if unknown:
        raise ValueError(f"{flag} {','.join(names)}: no such recording: {unknown[0]!r} (choices: {', '.join(AUDIO)})")
