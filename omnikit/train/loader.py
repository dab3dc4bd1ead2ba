"""Data loaders of a training: worker processes prepare batches ahead, so that the training loop does not wait.

A worker process uses one thread, and ignores the signals that ask a run to stop, because the main process still needs
batches to finish its optimiser step. An error in a worker is raised in the main process as it is.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from omnikit.data.collate import Batch
from omnikit.data.samples import Item, Samples, collate_items
from omnikit.errors import Stopped, one_line
from omnikit.model import OmniLM
from omnikit.torchrun import cores
from omnikit.train.waiting import Waiting

MOST_WORKERS = 8
"""Largest number of worker processes that is chosen automatically."""
_AHEAD = 2  # batches that each worker prepares ahead


class BatchLoader(DataLoader):
    """A data loader whose `waiting` measures how long its user waited for batches since an iteration began.

    Args:
        samples: data set of samples; workers that are not forked get it pickled.
        sampler: sampler that yields the samples of each batch, such as `MicroBatch`es.
        collate: picklable collate function.
        workers: number of worker processes; 0 = the main process prepares each batch when it is asked for.
        pin_memory: whether batches are copied to pinned memory, from which copying to a GPU does not block.
        method: start method of worker processes, see `multiprocessing`; None = Python's default.
    """

    def __init__(
        self,
        samples: Dataset,
        sampler: Iterable[list[int]],
        collate: Callable[[list[Item | None]], Batch],
        *,
        workers: int = 0,
        pin_memory: bool = False,
        method: str | None = None,
    ):
        self.waiting = Waiting()
        options: dict[str, Any] = {"pin_memory": pin_memory, "generator": torch.Generator()}
        if workers:
            # the warning of the tokenizers library about forks, and its threads, are of no use in workers
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            samples, collate = _InWorker(samples), _Collate(collate)
            options |= {"num_workers": workers, "persistent_workers": True, "prefetch_factor": _AHEAD}
            options |= {"worker_init_fn": _start_worker, "multiprocessing_context": method}
        super().__init__(samples, batch_sampler=sampler, collate_fn=collate, **options)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the sampler.

        Raises:
            Stopped: a worker process was killed.
        """
        self.waiting.reset()
        batches: Iterator[Batch | _Failure] | None = None
        while True:
            with self.waiting.timed():
                if batches is None:
                    with _signals_held():
                        batches = super().__iter__()
                batch = self._next(batches)
            if batch is None:
                return
            yield batch

    def _next(self, batches: Iterator[Batch | _Failure]) -> Batch | None:
        try:
            batch = next(batches, None)
        except RuntimeError as error:
            if self.num_workers and "DataLoader worker" in str(error):
                raise Stopped(
                    f"a worker process that prepares batches ended ({one_line(error)}); if memory was short, use a "
                    f"smaller --num_workers than {self.num_workers}"
                ) from error
            raise
        if isinstance(batch, _Failure):
            try:
                raise batch.error
            finally:
                del batch  # its reference to the error, and so to this frame, would keep the workers running
        return batch


def batch_loader(
    samples: Samples,
    sampler: Iterable[list[int]],
    model: OmniLM,
    *,
    num_workers: int | None,
    device: torch.device | str,
    method: str | None = None,
) -> BatchLoader:
    """Return the data loader of training or validation batches for a device.

    Args:
        sampler: sampler of a training, which yields `MicroBatch`es, or lists of sample indices.
        num_workers: number of worker processes; None = automatic, see `workers_for`.
        method: start method of worker processes, see `multiprocessing`; None = Python's default.
    """
    device = torch.device(device)
    workers = workers_for(device) if num_workers is None else num_workers
    pinned = device.type == "cuda"
    return BatchLoader(samples, sampler, collate_items(model), workers=workers, pin_memory=pinned, method=method)


def workers_for(device: torch.device) -> int:
    """Return the automatic number of worker processes of one training process.

    On a GPU these are the CPU cores of the process, at most `MOST_WORKERS`. On a CPU there are none, because the
    training itself uses all cores.
    """
    if device.type == "cpu":
        return 0
    return max(1, min(MOST_WORKERS, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


class _Failure:
    """An error of a worker process on its way to the main process, with the worker's traceback as a note."""

    def __init__(self, error: Exception):
        note = "".join(traceback.format_exception(error))
        try:
            pickle.dumps(error)
            copy.copy(error)  # as in the other process, by calling its class
        except Exception:  # an error whose class takes other arguments than its message cannot be sent
            error = next(kind for kind in (ValueError, OSError, Exception) if isinstance(error, kind))(str(error))
        error.add_note(note)
        self.error = error


class _InWorker(Dataset):
    """A data set that returns errors instead of raising them."""

    def __init__(self, samples: Dataset):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: list[int]) -> list[Item | None] | _Failure:
        try:
            return self.samples.__getitems__(indices)
        except Exception as error:
            return _Failure(error)


class _Collate:
    """A collate function that returns errors, its own and those of the data set, instead of raising them."""

    def __init__(self, collate: Callable[[list[Item | None]], Batch]):
        self.collate = collate

    def __call__(self, items: list[Item | None] | _Failure) -> Batch | _Failure:
        if isinstance(items, _Failure):
            return items
        try:
            return self.collate(items)
        except Exception as error:
            return _Failure(error)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back stop signals from this thread and from the processes that it starts in a `with` block.

    The processes get their handling of these signals only when they run.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(number: int) -> None:
    """Let a worker process end by SIGTERM from its parent only, and ignore Ctrl-C.

    A terminal, torchrun and batch schedulers send these signals to all processes of a run. The main process then saves
    a checkpoint and ends its workers itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by_parent, daemon=True).start()


def _end_by_parent() -> None:
    parent = multiprocessing.parent_process().pid  # os.getppid() is that of the server with the method forkserver
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
