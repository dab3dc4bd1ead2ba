"""Encoder features in the Parquet files of a manifest, which are read where they lie.

Features of a large corpus take terabytes, so they are neither copied to a cache nor part of a manifest's digest. Files
of `ManifestWriter` hold them uncompressed, all values of a row group one after another at the end of their page:

    page header | definition levels | 4 bytes: size of the first value | the first value | 4 bytes: size of the next ..

The position of each value follows from `frames` and from the width that the file notes, so that the features of an
entry are read by one access to exactly their bytes. Of other files, whole row groups are read.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from omnikit.data.content_digest import THREADS, Content
from omnikit.data.parquet_manifest import DAMAGED, Shard
from omnikit.errors import one_line
from omnikit.files import whole_file

logger = logging.getLogger(__name__)
FEATURES = "features"
"""Name of the column."""
PLACES = "features.npy"
"""Name of the file with the size and the position of the features in each row of a manifest."""
ABSENT = -1
"""Size of the features of a row without any; position of features that are only found by reading their row group."""
_FILES = 64  # files that a process keeps open
_HEADER = 2**16  # bytes; more than page header and definition levels of a row group take
_BLOCK = 2**20  # bytes that are hashed at a time


class TableContent(Content):
    """A Parquet file that is identified by its bytes without those of encoder features.

    Nothing that is cached depends on them: they are read from the file itself. Their sizes and positions are in the
    part of the file that is hashed.
    """

    def digest(self) -> bytes:
        """Return the BLAKE2b digest (16 bytes) of the file without its features.

        Raises:
            OSError: the file cannot be read.
        """
        digest = hashlib.blake2b(digest_size=16)
        with open(self.path, "rb") as file:
            begin = 0
            for chunk, end in [*_feature_chunks(self.path), (os.fstat(file.fileno()).st_size, 0)]:
                file.seek(begin)
                while begin < chunk and (data := file.read(min(_BLOCK, chunk - begin))):
                    digest.update(data)
                    begin += len(data)
                begin = end
        return digest.digest()


def _feature_chunks(path: str) -> list[tuple[int, int]]:
    """Return first byte and end of the features of each row group; none if the file is damaged."""
    try:
        with pq.ParquetFile(path) as file:
            return sorted(_span(chunk) for chunk in _chunks(file.metadata))
    except DAMAGED:
        return []


def _chunks(metadata: pq.FileMetaData) -> Iterator[pq.ColumnChunkMetaData]:
    """Yield the description of the features of each row group."""
    numbers = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path == FEATURES]
    for group in range(metadata.num_row_groups):
        yield from (metadata.row_group(group).column(number) for number in numbers)


def _span(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    begin = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return begin, begin + chunk.total_compressed_size


class ParquetFeatures:
    """The encoder features in the rows of Parquet files, read on access.

    Args:
        shards: the files that have rows, in the order of the rows.
        stored: file with the size in bytes and the position of the features of each row (int64 [2, rows]), which is
            memory-mapped.
    """

    def __init__(self, shards: Sequence[tuple[Path, int]], stored: Path):
        self.shards, self.stored = list(shards), stored
        self.begins = np.cumsum([0, *(rows for _, rows in self.shards)])
        self.sizes, self.places = np.load(stored, mmap_mode="r")
        self._open: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._group: _RowGroup | None = None

    def __reduce__(self) -> tuple:
        return ParquetFeatures, (self.shards, self.stored)  # another process opens the files itself

    def read(self, row: int, frames: int) -> Tensor:
        """Return the features [T, D] (float16) in a row.

        Args:
            frames: their number T.

        Raises:
            ValueError: the file has changed since the manifest was read, or cannot be read; the message names it.
        """
        number = int(np.searchsorted(self.begins, row, side="right")) - 1
        path = self.shards[number][0]
        try:
            place, size = int(self.places[row]), int(self.sizes[row])
            values = self._bytes(number, place, size) if place >= 0 else self._of_group(number, row)
        except DAMAGED as error:
            raise ValueError(f"manifest {path}: its features cannot be read ({one_line(error)})") from None
        if values is None or 2 * len(values) != size:
            raise ValueError(f"manifest {path}: has changed since it was read; start again")
        return torch.from_numpy(values.reshape(frames, -1))

    def _bytes(self, number: int, place: int, size: int) -> np.ndarray | None:
        """Return the float16 values at a position of a file; None if other bytes are there."""
        found, values = bytearray(4), np.empty(size // 2, "<f2")
        count = os.preadv(self._file(number).fileno(), [found, values], place - 4)
        return values if count == size + 4 and int.from_bytes(found, "little") == size else None

    def _file(self, number: int) -> IO[bytes]:
        if number not in self._open:
            self._open[number] = self.shards[number][0].open("rb", buffering=0)
            if len(self._open) > _FILES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]

    def _of_group(self, number: int, row: int) -> np.ndarray | None:
        """Return the float16 values in a row after reading its row group, unless that was read last."""
        path, place = self.shards[number][0], row - int(self.begins[number])
        if self._group is None or not self._group.has(path, place):
            self._group = _RowGroup.read(path, place)
        value = self._group.features[place - self._group.begin].as_py()
        return None if value is None else np.frombuffer(value, "<f2").copy()


@dataclass(frozen=True)
class _RowGroup:
    """The features of a row group of a file, whose first row is `begin`."""

    path: Path
    begin: int
    features: pa.ChunkedArray

    @classmethod
    def read(cls, path: Path, row: int) -> _RowGroup:
        """Read the row group that has a row of a file."""
        with pq.ParquetFile(path) as file:
            begins = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))])
            group = int(np.searchsorted(begins, row, side="right")) - 1
            return cls(path, int(begins[group]), file.read_row_group(group, columns=[FEATURES]).column(0))

    def has(self, path: Path, row: int) -> bool:
        return path == self.path and 0 <= row - self.begin < len(self.features)


def find_features(shards: Sequence[Shard], folder: Path) -> ParquetFeatures:
    """Return the features in the files of a manifest, after finding their positions unless that was done before.

    Args:
        shards: the files that have rows, in the order of the rows.
        folder: folder for the positions, whose name depends on the content of the files.

    Raises:
        ValueError: a file is damaged; the message names it.
    """
    stored = folder / PLACES
    if not stored.is_file():
        with ThreadPoolExecutor(THREADS) as pool:
            found = np.concatenate(list(pool.map(_located, shards)), axis=1)
        with whole_file(stored, of_process=True) as aside, aside.open("wb") as file:
            np.save(file, found)
    features = ParquetFeatures([(shard.file, shard.rows) for shard in shards], stored)
    slow = np.flatnonzero((features.sizes >= 0) & (features.places < 0))
    if len(slow):
        path = shards[int(np.searchsorted(features.begins, slow[0], side="right")) - 1].file
        words = "%s: features of %d entries are read by whole row groups, which is slow; omnikit tokenize copies them"
        logger.warning(f"{words} to files with fast access", path, len(slow))
    return features


def _located(shard: Shard) -> np.ndarray:
    """Return size and position of the features in each row of a file [2, rows]."""
    if FEATURES not in shard.fields or pa.types.is_null(shard.schema.field(FEATURES).type):
        return np.full((2, shard.rows), ABSENT, np.int64)
    try:
        with pq.ParquetFile(shard.file) as file:
            noted = _from_width(shard, file)
            return np.stack([_sizes(file), np.full(shard.rows, ABSENT)]) if noted is None else noted
    except DAMAGED as error:
        raise ValueError(f"manifest {shard.file}: its features cannot be read ({one_line(error)})") from None


def _sizes(file: pq.ParquetFile) -> np.ndarray:
    """Return the number of bytes of the features in each row, read from the features themselves [rows]."""
    sizes = [
        pc.fill_null(pc.binary_length(column.column(0)).cast(pa.int64()), ABSENT).to_numpy()
        for group in range(file.num_row_groups)
        for column in [file.read_row_group(group, columns=[FEATURES])]
    ]
    return np.concatenate([np.zeros(0, np.int64), *sizes])


def _from_width(shard: Shard, file: pq.ParquetFile) -> np.ndarray | None:
    """Return size and position of features [2, rows] according to the width that the file notes.

    Returns:
        None if the file notes none, or if the features are not stored as `ManifestWriter` stores them.
    """
    if shard.width is None or "frames" not in shard.fields:
        return None
    column = file.read(columns=["frames"]).column(0)
    frames = pc.fill_null(column.cast(pa.int64()), 0).to_numpy()
    sizes, places, begin = np.where(frames > 0, 2 * shard.width * frames, ABSENT), np.full(len(frames), ABSENT), 0
    with shard.file.open("rb", buffering=0) as opened:
        for group, chunk in enumerate(_chunks(file.metadata)):
            end = begin + file.metadata.row_group(group).num_rows
            held = begin + np.flatnonzero(sizes[begin:end] >= 0)
            found = _positions(chunk, sizes[held], opened)
            if found is None:
                return None
            places[held], begin = found, end
    return np.stack([sizes, places])


def _positions(chunk: pq.ColumnChunkMetaData, sizes: np.ndarray, file: IO[bytes]) -> np.ndarray | None:
    """Return the positions of values of known sizes in a file; None if they are not stored one after another."""
    if not len(sizes):
        return sizes
    begin, end = _span(chunk)
    places = end - np.cumsum((sizes + 4)[::-1])[::-1] + 4
    plain = chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page
    if not plain or not 4 <= places[0] - begin <= _HEADER + len(sizes):
        return None
    noted = os.pread(file.fileno(), 4, int(places[0]) - 4)
    return places if int.from_bytes(noted, "little") == sizes[0] else None
