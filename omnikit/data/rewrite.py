"""From a manifest to one with more fields, shard by shard: what `omnikit tokenize` and `omnikit synthesize` share.

A shard follows from its rows of the manifest and from the options alone, not from when or by whom it was made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from omnikit.data.manifest import AUDIO, FIELDS, ManifestWriter, accepted_answers
from omnikit.data.rows import check_columns, in_parquet, read_fields
from omnikit.data.shards import (
    Item,
    Part,
    Remark,
    Summary,
    fingerprint_of,
    in_batches,
    kept,
    make,
    problem_of_texts,
    remove_others,
    write_rows,
)
from omnikit.data.upstream import parquet_parts
from omnikit.ranges import COUNT
from omnikit.torchrun import Share

SHARD_ROWS = 2048
VERSION = 1
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


class Step(ABC):
    """What is done with the rows."""

    name: str
    """Of the command, for the summary."""
    made_by: tuple[object, ...]
    """What the rows depend on but for those of the manifest."""
    chunk: int
    """Rows that are worked on together."""

    @abstractmethod
    def columns(self, found: Columns) -> Columns:
        """The fields of the manifest -> those of the shards. Called once, before the first row.

        Raises:
            ValueError: a field that the options name is not there.
        """

    @abstractmethod
    def rows(self, items: list[Item]) -> Iterator[Item | Remark]:
        """Rows -> rows in their order, or why there is none."""


def rewrite(
    manifest: str | Path, save_folder: str | Path, step: Step, *, shard_rows: int = SHARD_ROWS, strict: bool = False
) -> Summary:
    """Write the shards that are not there yet; under torchrun, those of this process: every `WORLD_SIZE`-th.

    Args:
        shard_rows: of a shard, at least: of Parquet, a shard ends with the row group that makes it full.
        strict: the first thing that makes no row is an error.

    Raises:
        ValueError: the manifest cannot be read, gives no row, or stands in the save folder; the disk is full.
    """
    manifest, save_folder = Path(manifest), Path(save_folder)
    COUNT.check("shard_rows", shard_rows)
    if save_folder.resolve() == (manifest if manifest.is_dir() else manifest.parent).resolve():
        raise ValueError(f"--save_folder {save_folder}: holds the manifest that is read; choose another")
    found, parts = read_parts(manifest, shard_rows)
    columns = step.columns(found)
    share = Share.of_torchrun()
    which = f", process {share.rank + 1} of {share.processes}" if share.processes > 1 else ""
    total = Summary(step.name + which)
    for number, part in enumerate(parts):
        if number % share.processes == share.rank:
            title = f"{step.name} {number + 1}/{len(parts)}"
            total.update(_shard(save_folder, part, step, columns, shard_rows, strict, title))
    if share.rank == 0:
        remove_others(save_folder, {part.name for part in parts})
    if not total.rows and share.processes == 1:
        raise ValueError(f"{manifest}: no usable row; {total}")
    return total


def read_parts(manifest: Path, shard_rows: int) -> tuple[Columns, list[Part]]:
    """The fields of a manifest, and its rows as parts that become a shard each.

    Raises:
        ValueError: see `rewrite`.
    """
    if not in_parquet(manifest):
        items = [_as_texts(fields) for fields in read_fields(manifest)]
        names = {name for item in items for name in item}
        return Columns(()).with_more(names), [
            Part(f"{manifest.stem}-{number:04d}", [manifest], lambda rows=rows: map(dict, rows), len(rows))
            for number, rows in enumerate(in_batches(items, shard_rows))
        ]
    files = sorted(manifest.glob("*.parquet")) if manifest.is_dir() else [manifest]
    if not files or not files[0].is_file():
        raise ValueError(f"manifest: no such file: {manifest / '*.parquet' if manifest.is_dir() else manifest}")
    columns, parts = Columns(()), []
    for file in files:
        own = _columns(file)
        either = [name for name in AUDIO if name in own.names and name in columns.names]
        if any((name in own.embedded) != (name in columns.embedded) for name in either):
            raise ValueError(
                f"manifest {file}: its recordings are bytes where others are paths, or the other way round"
            )
        columns = columns.with_more(own.names, own.embedded)
        parts += parquet_parts(file, own.names, _to_item, shard_rows)
    return columns, parts


def _columns(file: Path) -> Columns:
    """Of a Parquet file; none where it cannot be read, which its part tells."""
    try:
        found = pq.read_schema(file)
    except (pa.ArrowInvalid, OSError):
        return Columns(())
    check_columns(file, found.names, ("id", "t1"))
    names = [name for name in FIELDS if name in found.names]
    embedded = [n for n in AUDIO if n in names and found.field(n).type in (pa.binary(), pa.large_binary())]
    return Columns(tuple(names), tuple(embedded))


def _as_texts(fields: dict[str, Any]) -> Item:
    """Fields of a CSV or JSON row as Parquet keeps them: texts where JSON may have numbers, paths from the root."""
    texts = {name: str(value) for name, value in fields.items() if FIELDS[name] == pa.string()}
    return {**fields, **texts, **{name: str(Path(fields[name]).absolute()) for name in AUDIO if name in fields}}


def _to_item(row: dict[str, Any]) -> Item | Remark:
    item = {name: value for name, value in row.items() if value is not None}
    item |= {"accepted": accepted_answers(item["accepted"])} if "accepted" in item else {}
    return item if item.get("id") else Remark("malformed", str(item.get("t1", ""))[:60])


def _shard(
    folder: Path, part: Part, step: Step, columns: Columns, shard_rows: int, strict: bool, title: str
) -> Summary:
    path = folder / f"{part.name}.parquet"
    fingerprint = fingerprint_of(part, VERSION, shard_rows, columns, *step.made_by)
    summary = kept(path, fingerprint, strict)
    if summary is not None:
        return summary
    return make(path, fingerprint, lambda: _write(path, part, step, columns, strict, title))


def _write(path: Path, part: Part, step: Step, columns: Columns, strict: bool, title: str) -> Summary:
    with ManifestWriter(path, columns.names, columns.embedded) as writer:
        batches = ((len(batch), _made(batch, step)) for batch in in_batches(part.items(), step.chunk))
        return write_rows(writer, Summary(part.name), batches, total=part.rows, title=title, strict=strict)


def _made(batch: Sequence[Item | Remark], step: Step) -> Iterator[Item | Remark]:
    """What stands between usable rows is told first."""
    items = []
    for item in batch:
        if isinstance(item, Remark):
            yield item
        elif problem := problem_of_texts(item):
            yield Remark(problem, item["id"])
        else:
            items.append(item)
    yield from step.rows(items)


def check_recordings(flag: str, names: Sequence[str]) -> None:
    """Raises `ValueError` naming the choices where one is no recording of `manifest.AUDIO`."""
    unknown = [name for name in names if name not in AUDIO]
    if unknown:
        raise ValueError(f"{flag} {','.join(names)}: no such recording: {unknown[0]!r} (choices: {', '.join(AUDIO)})")
