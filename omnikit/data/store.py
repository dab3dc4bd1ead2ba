"""Arrays on disk by name: what a frozen encoder or a codec made of each recording, kept so that it is made once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from omnikit.errors import writing

_SCHEMA = pa.schema(
    [("key", pa.string()), ("shape", pa.list_(pa.int32())), ("dtype", pa.string()), ("data", pa.binary())]
)
_ROWS_PER_BATCH = 256


class ArrayStore:
    """Arrays in one memory-mapped Arrow file."""

    def __init__(self, path: str | Path):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self.keys = table["key"].to_pylist()
        self.shapes = table["shape"].to_pylist()
        self.index = {key: i for i, key in enumerate(self.keys)}
        self._dtypes, self._data = table["dtype"].to_pylist(), table["data"]

    def __contains__(self, key: str) -> bool:
        return key in self.index

    def __getitem__(self, key: str) -> Tensor:
        i = self.index[key]
        array = np.frombuffer(self._data[i].as_py(), dtype=self._dtypes[i]).reshape(self.shapes[i])
        return torch.from_numpy(array.copy())

    def shape(self, key: str) -> list[int]:
        """Shape of an array, without reading it."""
        return self.shapes[self.index[key]]


def write_store(path: str | Path, arrays: Iterable[tuple[str, Tensor]]) -> None:
    """Write arrays aside and rename, so that the file is whole or absent.

    Raises:
        ValueError: the disk is full; the message names the file.
    """
    path = Path(path)
    aside = path.with_suffix(f".{os.getpid()}.unfinished")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(aside), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
                for rows in _batches(arrays):
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_SCHEMA))
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _batches(arrays: Iterable[tuple[str, Tensor]]) -> Iterator[list[dict]]:
    rows: list[dict] = []
    for key, tensor in arrays:
        array = tensor.contiguous().numpy()
        rows.append({"key": key, "shape": list(array.shape), "dtype": str(array.dtype), "data": array.tobytes()})
        if len(rows) == _ROWS_PER_BATCH:
            yield rows
            rows = []
    if rows:
        yield rows


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
