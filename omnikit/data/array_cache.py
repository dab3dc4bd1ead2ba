"""On-disk cache of the features or codes that a frozen encoder or a codec computes from recordings.

A cache holds the features of one encoder or the codes of one codec as arrays in a folder of its own. The key of an
array is the digest of the recording's content: a replaced recording is encoded again, a moved one is not. Arrays are
appended to `<name>.bin` files, which are memory-mapped for reading, and `index.sqlite` stores the position of each
array. An array is flushed to the disk before it is entered in the index, so a process that is killed loses at most the
arrays of its last `add`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import uuid
from array import array
from collections.abc import Iterable, Iterator, Sequence
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
READER = f"reader {READER_VERSION} of libsndfile {soundfile.__libsndfile_version__}"
"""Versions of audio reader and libsndfile, stored in place of a file name for recordings that cannot be encoded."""
_TOGETHER = 2048  # digests that are looked up while the index is locked
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS arrays (digest BLOB PRIMARY KEY, file TEXT, begin INTEGER, rows INTEGER,"
    " columns INTEGER, dtype TEXT, problem TEXT) WITHOUT ROWID"
)


@dataclass(frozen=True)
class ArrayLocation:
    """Position of a recording's features or codes [rows, columns] in a cache file, or the reason why it has none."""

    file: str = ""
    begin: int = 0  # bytes
    rows: int = 0
    columns: int = 0
    dtype: str = "uint8"
    problem: str | None = None

    @property
    def end(self) -> int:
        return self.begin + self.rows * self.columns * np.dtype(self.dtype).itemsize


class StoredArrays:
    """Features or codes [rows, columns] in the files of a cache, read by number from memory-mapped files on access.

    Args:
        folder: folder of the cache.
        files: pairs of file name and dtype.
        places: for each array the index of its pair in `files`, its first byte, rows and columns [arrays, 4].
    """

    def __init__(self, folder: Path, files: Sequence[tuple[str, str]], places: np.ndarray):
        self.folder, self.files, self.places = folder, list(files), places
        self._maps: dict[str, np.memmap] = {}

    def read(self, number: int) -> Tensor:
        """Return the array with this number [rows, columns]."""
        pair, begin, rows, columns = self.places[number].tolist()
        file, dtype = self.files[pair]
        if not rows * columns:
            return torch.from_numpy(np.empty((rows, columns), dtype))
        if file not in self._maps:
            self._maps[file] = np.memmap(self.folder / file, np.uint8, "r")
        stored = self._maps[file][begin : begin + rows * columns * np.dtype(dtype).itemsize]
        return torch.from_numpy(np.array(stored).view(dtype).reshape(rows, columns))

    def whole(self) -> bool:
        """Return whether the files of the cache still hold all arrays."""
        sizes = np.array([np.dtype(dtype).itemsize for _, dtype in self.files], dtype=np.int64)
        pairs, begins, rows, columns = np.asarray(self.places).T
        ends = begins + rows * columns * sizes[pairs]
        for pair, (file, _) in enumerate(self.files):
            path, last = self.folder / file, ends[pairs == pair].max(initial=0)
            if last > (path.stat().st_size if path.is_file() else 0):
                return False
        return True

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_maps": {}}  # each worker process of a data loader maps the files itself


class ArrayStore(StoredArrays):
    """A read-only mapping from keys to features or codes [rows, columns], read from memory-mapped files on access.

    Args:
        folder: folder of the cache.
        places: pairs of key and position of the array.
    """

    def __init__(self, folder: Path, places: Iterable[tuple[str, ArrayLocation]] = ()):
        self.index: dict[str, int] = {}
        table = array("q")  # plain numbers: there can be millions of arrays
        numbers: dict[tuple[str, str], int] = {}
        for key, place in places:
            self.index[key] = len(self.index)
            number = numbers.setdefault((place.file, place.dtype), len(numbers))
            table.extend((number, place.begin, place.rows, place.columns))
        super().__init__(folder, list(numbers), np.array(table, dtype=np.int64).reshape(-1, 4))

    def __contains__(self, key: str) -> bool:
        return key in self.index

    def __getitem__(self, key: str) -> Tensor:
        return self.read(self.index[key])

    def shape(self, key: str) -> list[int]:
        """Return the shape of the features or codes stored under a key without reading them."""
        return self.places[self.index[key], 2:].tolist()


class ArrayCache:
    """An open on-disk cache of the features or codes that one encoder or codec computed, by digest of the recording.

    Use `open_cache` to create one.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection):
        self.folder, self.connection = folder, connection
        self._file: BinaryIO | None = None
        self._path = folder / f"{uuid.uuid4().hex}.bin"  # written by this process alone
        self._end = 0  # bytes of the file that the index refers to
        self._sizes: dict[str, int] = {}
        self._reported: set[str] = set()

    def find(self, digests: Iterable[bytes]) -> Iterator[ArrayLocation | None]:
        """Yield where each recording's features or codes are stored, or why it has none; None if not computed yet."""
        for some in in_batches(digests, _TOGETHER):
            with reading(self.connection):
                found = [self._find(digest) for digest in some]
            yield from found

    def add(self, computed: Iterable[tuple[bytes, Tensor | str]]) -> None:
        """Store the features or codes [rows, columns] of recordings, or the reasons why they have none, by digest.

        Raises:
            ValueError: the disk is full; the message names the file.
        """
        computed = list(computed)  # before `writing`, which would report errors of the computation as the file's
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
        """Close the cache file after removing incomplete data that a failed `add` has left at its end."""
        if self._file is not None:
            with suppress(OSError):  # a full disk was reported by `add`; all arrays of the index are on the disk
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
        if place.problem is not None:  # another version of the reader may be able to read the recording
            return place if place.file == READER else None
        return None if self._is_cut_short(place) else place

    def _append(self, computed: Tensor | str) -> ArrayLocation:
        if isinstance(computed, str):
            return ArrayLocation(file=READER, problem=computed)
        values = computed.contiguous().numpy()
        begin = self._file.tell()
        self._file.write(values.tobytes())
        return ArrayLocation(self._path.name, begin, *values.shape, str(values.dtype))

    def _is_cut_short(self, place: ArrayLocation) -> bool:
        """Return whether features or codes extend beyond the end of their cache file, which was damaged or removed."""
        if place.end <= self._sizes.get(place.file, 0):
            return False
        path = self.folder / place.file  # stat again: another process may have appended to it
        self._sizes[place.file] = path.stat().st_size if path.is_file() else 0
        cut_short = place.end > self._sizes[place.file]
        if cut_short and place.file not in self._reported:
            self._reported.add(place.file)
            logger.warning("%s: is missing or cut short; its arrays are computed again", path)
        return cut_short


@contextmanager
def open_cache(folder: Path) -> Iterator[ArrayCache]:
    """Open a cache folder of features or codes for the duration of a `with` block; several processes may share it.

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
    """Return a hash (16 hex digits) of a module's class, plain options and weights, and of further strings.

    Weights are hashed as bfloat16, the type in which checkpoints store them, so that saving and loading a part does
    not change its fingerprint.
    """
    digest = hashlib.sha256(type(module).__qualname__.encode())
    plain = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str))}
    plain.pop("training", None)
    plain.pop("weights", None)  # the path they were loaded from; their values are hashed below
    digest.update(repr(sorted(plain.items())).encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        stored = tensor.detach().cpu().contiguous()
        stored = stored.to(torch.bfloat16).view(torch.int16) if stored.is_floating_point() else stored
        digest.update(stored.numpy().tobytes())
    for text in more:
        digest.update(text.encode())
    return digest.hexdigest()[:16]
