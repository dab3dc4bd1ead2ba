"""Finds the dialogs of a manifest that have no recording of any question, wherever their turns stand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq

from omnikit.data.manifest_reader import in_parquet
from omnikit.data.manifest_writer import AUDIO
from omnikit.data.parquet_manifest import DAMAGED, Damaged, Shard, read_shard, shard_files
from omnikit.data.skipped import Remark
from omnikit.data.text_manifest import read_fields


def written_dialogs(manifest: Path) -> set[str]:
    """Return the names of the dialogs of a manifest none of whose turns has a recording of its question.

    Damaged files are ignored; they are reported when their entries are read.

    Raises:
        ValueError: the manifest cannot be read.
    """
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for dialog, spoken in _turns(manifest):
        found[spoken].add(str(dialog))
    return found[False] - found[True]


def _turns(manifest: Path) -> Iterator[tuple[str | int, bool]]:
    """Yield the dialog of each turn, and whether it has a recording of its question."""
    if in_parquet(manifest):
        for file in shard_files(manifest):
            with suppress(Damaged, *DAMAGED):
                yield from _turns_in(read_shard(file))
        return
    for item in read_fields(manifest):
        if not isinstance(item, Remark) and item.get("dialog"):
            yield item["dialog"], AUDIO[0] in item


def _turns_in(shard: Shard) -> Iterator[tuple[str | int, bool]]:
    columns = {field: name for name, field in shard.fields.items()}
    dialog, recording = columns.get("dialog"), columns.get(AUDIO[0])
    if dialog is None:
        return
    with pq.ParquetFile(shard.file) as file:
        for group in range(file.num_row_groups):
            complete = recording is not None and _has_all(file.metadata.row_group(group), recording)
            wanted = [dialog] if complete or recording is None else [dialog, recording]
            table = file.read_row_group(group, wanted).flatten()
            others = [table.column(name) for name in table.column_names if name != dialog]
            masks = [column.is_valid().to_pylist() for column in others]
            for row, name in enumerate(table.column(dialog).to_pylist()):
                if name not in (None, ""):
                    yield name, complete or any(mask[row] for mask in masks)


def _has_all(group: pq.RowGroupMetaData, column: str) -> bool:
    """Return whether the statistics of a row group say that a column has a value in each row, so it need not be read.
    """
    parts = (group.column(number) for number in range(group.num_columns))
    found = [part.statistics for part in parts if part.path_in_schema.partition(".")[0] == column]
    return any(each is not None and each.has_null_count and each.null_count == 0 for each in found)
