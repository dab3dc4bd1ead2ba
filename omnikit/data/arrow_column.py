"""Columns of memory-mapped Arrow tables, from which single values are read in microseconds."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa


class ArrowColumn:
    """A column of a memory-mapped `datasets.Dataset`, read row by row without the cost of a whole row of `datasets`.

    Args:
        dataset: the data set; it needs no other columns.
        name: name of the column.
    """

    def __init__(self, dataset: Any, name: str):
        self.dataset, self.name = dataset, name
        self.data: pa.ChunkedArray = dataset.data.column(name)
        self.ends = list(accumulate(len(chunk) for chunk in self.data.chunks))

    def __reduce__(self) -> tuple:
        return ArrowColumn, (self.dataset, self.name)  # another process maps the file itself

    def __getitem__(self, row: int) -> Any:
        """Return the value in a row as a Python object, None if it is null."""
        return self._scalar(row).as_py()

    def matrix(self, row: int) -> np.ndarray:
        """Return the lists of equal length in a row as an int16 array [lists, values], such as codes [K, T]."""
        lists = self._scalar(row).values
        return lists.flatten().to_numpy(zero_copy_only=False).astype(np.int16).reshape(len(lists), -1)

    def _scalar(self, row: int) -> pa.Scalar:
        number = bisect_right(self.ends, row)
        return self.data.chunk(number)[row - (self.ends[number - 1] if number else 0)]
