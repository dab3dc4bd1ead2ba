"""Exchange of checksums between processes that write one checkpoint together, beside the training.

Threads cannot use torch's collective operations while the main thread does, so they use the shared store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omnikit.torchrun import Share
from omnikit.train.checksums import Sums
from omnikit.train.process_group import shared_store

_POLL = 0.1  # seconds between two looks at the store
_ERROR = "error"


def shard_of(path: Path, rank: int) -> Path:
    """Return the path of the file that a process writes for an object, such as `model.ckpt` or `model.1.ckpt`."""
    return path if rank == 0 else path.with_suffix(f".{rank}{path.suffix}")


class ShardSums:
    """The checksums of one checkpoint's files, which the main process collects from the others.

    Args:
        number: number of the checkpoint in this run, equal in all processes.
        processes: number of processes that write files; with 1 there is nothing to exchange.
    """

    def __init__(self, number: int, processes: int):
        self.number, self.processes = number, processes

    def give(self, sums: Sums) -> None:
        """Tell the main process that this process has written and flushed files with the given sums."""
        if self.processes > 1:
            shared_store().set(self._key(Share.of_torchrun().rank), json.dumps(sums))

    def take(self) -> Sums:
        """Wait for the sums of all other processes and return them; called by the main process.

        Raises:
            OSError: another process could not write its files.
        """
        sums: Sums = {}
        for rank in range(1, self.processes):
            key = self._key(rank)
            while not shared_store().check([key]):
                time.sleep(_POLL)
            given = json.loads(shared_store().get(key))
            shared_store().delete_key(key)
            if _ERROR in given:
                raise OSError(f"process {rank}: {given[_ERROR]}")
            sums.update(given)
        return sums

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Let the main process know of an error in a `with` block of another process, so that it does not wait."""
        try:
            yield
        except BaseException as error:
            if Share.of_torchrun().rank:
                self.give({_ERROR: str(error)})
            raise

    def _key(self, rank: int) -> str:
        return f"checkpoint {self.number} of {rank}"
