"""Arrays on disk: what a frozen encoder or a codec computed from each recording, kept so that it is computed once.

A cache holds the arrays of one part in a folder of its own. They are found by the digest of the recording's content:
a recording that was replaced has no array yet, and one that was moved has. `<name>.bin` files are appended to and
memory-mapped, and `index.sqlite` says where each array stands. An array is flushed to the disk before the index names
it, so a process that is killed loses the arrays of its last `add` at most.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import uuid
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from omnikit.audio.reader import READER_VERSION
from omnikit.data.batched import in_batches
from omnikit.data.sqlite import open_database, reading
from omnikit.errors import writing

logger = logging.getLogger(__name__)
INDEX = "index.sqlite"
_READER = f"reader {READER_VERSION} of libsndfile {soundfile.__libsndfile_version__}"
"""Whose verdict it is that a recording has no array; it stands in the place of the file's name."""
_TOGETHER = 2048  # places that are looked up while the index is locked
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS arrays (digest BLOB PRIMARY KEY, file TEXT, begin INTEGER, rows INTEGER,"
    " columns INTEGER, dtype TEXT, problem TEXT) WITHOUT ROWID"
)


@dataclass(frozen=True)
class ArrayLocation:
    """Where the array [rows, columns] of a recording stands; `problem` is the reason why it has none."""

    file: str = ""
    begin: int = 0  # bytes
    rows: int = 0
    columns: int = 0
    dtype: str = "uint8"
    problem: str | None = None

    @property
    def end(self) -> int:
        return self.begin + self.rows * self.columns * np.dtype(self.dtype).itemsize


class ArrayStore:
    """Arrays [rows, columns] by key, each read from a memory-mapped file when it is asked for.

    Args:
        folder: of the cache.
        places: where the array of each key stands.
    """

    def __init__(self, folder: Path, places: Iterable[tuple[str, ArrayLocation]] = ()):
        self.folder = folder
        self.index: dict[str, int] = {}
        self._maps: dict[str, np.memmap] = {}
        table = array("q")  # plain numbers, for there can be many millions
        numbers: dict[tuple[str, str], int] = {}
        for key, place in places:
            self.index[key] = len(self.index)
            number = numbers.setdefault((place.file, place.dtype), len(numbers))
            table.extend((number, place.begin, place.rows, place.columns))
        self._files = list(numbers)  # name, and type of the numbers in it
        self._table = np.array(table, dtype=np.int64).reshape(-1, 4)

    def __contains__(self, key: str) -> bool:
        return key in self.index

    def __getitem__(self, key: str) -> Tensor:
        number, begin, rows, columns = self._table[self.index[key]].tolist()
        file, dtype = self._files[number]
        if not rows * columns:
            return torch.from_numpy(np.empty((rows, columns), dtype))
        if file not in self._maps:
            self._maps[file] = np.memmap(self.folder / file, np.uint8, "r")
        stored = self._maps[file][begin : begin + rows * columns * np.dtype(dtype).itemsize]
        return torch.from_numpy(np.array(stored).view(dtype).reshape(rows, columns))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_maps": {}}  # a process that loads samples maps the files itself

    def shape(self, key: str) -> list[int]:
        """Return the shape of an array without reading it."""
        return self._table[self.index[key], 2:].tolist()


class ArrayCache:
    """The arrays of one part by the digest of the recording; see `open_cache`."""

    def __init__(self, folder: Path, connection: sqlite3.Connection):
        self.folder, self.connection = folder, connection
        self._file: BinaryIO | None = None
        self._path = folder / f"{uuid.uuid4().hex}.bin"  # of this process alone
        self._end = 0  # bytes of the file that the index knows of
        self._sizes: dict[str, int] = {}
        self._reported: set[str] = set()

    def find(self, digests: Iterable[bytes]) -> Iterator[ArrayLocation | None]:
        """Yield where the array of each recording stands, or why it has none; None if it is still to be computed."""
        for some in in_batches(digests, _TOGETHER):
            with reading(self.connection):
                found = [self._find(digest) for digest in some]
            yield from found

    def add(self, computed: Iterable[tuple[bytes, Tensor | str]]) -> None:
        """Store arrays [rows, columns] by digest, or in their place the reason why a recording has none.

        Raises:
            ValueError: the disk is full; the message names the file.
        """
        computed = list(computed)  # what fails in computing is no fault of the file
        with writing(self._path):
            if self._file is None:
                self._file = self._path.open("xb")
            places = [(digest, self._append(each)) for digest, each in computed]
            self._file.flush()
            os.fsync(self._file.fileno())
        rows = [(digest, *astuple(place)) for digest, place in places]
        with self.connection:
            self.connection.executemany("INSERT OR REPLACE INTO arrays VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self._end = self._file.tell()

    def close(self) -> None:
        """Close the file, and cut off what an `add` that failed has left in it."""
        if self._file is not None:
            with suppress(OSError):  # of a full disk, which was reported; what the index names is on the disk
                self._file.close()
            os.truncate(self._path, self._end)
            if not self._end:
                self._path.unlink()

    def _find(self, digest: bytes) -> ArrayLocation | None:
        sql = "SELECT file, begin, rows, columns, dtype, problem FROM arrays WHERE digest = ?"
        row = self.connection.execute(sql, (digest,)).fetchone()
        if row is None:
            return None
        place = ArrayLocation(*row)
        if place.problem is not None:  # another reader may be able to read it
            return place if place.file == _READER else None
        return None if self._is_cut_short(place) else place

    def _append(self, computed: Tensor | str) -> ArrayLocation:
        if isinstance(computed, str):
            return ArrayLocation(file=_READER, problem=computed)
        values = computed.contiguous().numpy()
        begin = self._file.tell()
        self._file.write(values.tobytes())
        return ArrayLocation(self._path.name, begin, *values.shape, str(values.dtype))

    def _is_cut_short(self, place: ArrayLocation) -> bool:
        """Whether an array reaches beyond the end of its file, which was damaged or removed."""
        if place.end <= self._sizes.get(place.file, 0):
            return False
        path = self.folder / place.file  # another process may have appended to it meanwhile
        self._sizes[place.file] = path.stat().st_size if path.is_file() else 0
        cut_short = place.end > self._sizes[place.file]
        if cut_short and place.file not in self._reported:
            self._reported.add(place.file)
            logger.warning("%s: is missing or cut short; the arrays that it held are computed again", path)
        return cut_short


@contextmanager
def open_cache(folder: Path) -> Iterator[ArrayCache]:
    """Open the cache of one part for a `with` block; processes may share it.

    Raises:
        ValueError: see `open_database`.
    """
    with open_database(folder / INDEX, _SCHEMA) as connection:
        cache = ArrayCache(folder, connection)
        try:
            yield cache
        finally:
            cache.close()


def fingerprint(module: nn.Module, *more: str) -> str:
    """A short name for what a module computes: its class, plain options and weights, and whatever else matters.

    Weights count as checkpoints keep them (bfloat16), so that a part is the same one before and after it was saved.
    """
    digest = hashlib.sha256(type(module).__qualname__.encode())
    plain = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str))}
    plain.pop("training", None)
    plain.pop("weights", None)  # where they came from, not what they are
    digest.update(repr(sorted(plain.items())).encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        stored = tensor.detach().cpu().contiguous()
        stored = stored.to(torch.bfloat16).view(torch.int16) if stored.is_floating_point() else stored
        digest.update(stored.numpy().tobytes())
    for text in more:
        digest.update(text.encode())
    return digest.hexdigest()[:16]
