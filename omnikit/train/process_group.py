"""Start of the processes of a training under torchrun, and what they share."""

from __future__ import annotations

import itertools
import os
import time
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch.distributed import PrefixStore, Store, TCPStore

from omnikit.torchrun import Share

GRACE = 60.0
"""Seconds by which collective operations may last longer than `--hang_timeout`, so that the watchdog speaks first."""

_POLL = 0.2  # seconds between two looks at the store
_meetings = itertools.count()


def under_torchrun() -> bool:
    """Return whether this process is one of a training under torchrun."""
    return "RANK" in os.environ and "LOCAL_RANK" in os.environ


def start_processes(backend: str, hang_timeout: float) -> None:
    """Join this process to the others of its training; without torchrun do nothing.

    Args:
        backend: library of the collective operations, `nccl` or `gloo`.
        hang_timeout: minutes after which a process that finishes no step ends the training.

    Raises:
        ValueError: torchrun has started more processes on this machine than it has GPUs.
    """
    if not under_torchrun():
        return
    if backend == "nccl":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(f"--nproc_per_node: more than the {gpus} GPUs of this machine")
        torch.cuda.set_device(local)
    torch.distributed.init_process_group(backend, timeout=timedelta(minutes=hang_timeout, seconds=GRACE))


def end_processes() -> None:
    """Part from the other processes at the end of a training, after all of them have come here."""
    if torch.distributed.is_initialized():
        wait_for_all()
        shared_store.cache_clear()
        torch.distributed.destroy_process_group()


@cache
def shared_store() -> Store:
    """Return a key-value store that all processes of the training share, with a connection of its own.

    Threads use it beside the collective operations of the main thread, which need a connection for themselves.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, wait_for_workers=False)
    return PrefixStore(f"omnikit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def wait_for_all() -> None:
    """Wait until every process has come here, for as long as it takes.

    A barrier of torch would end after `--hang_timeout`, and preparations such as encoding a corpus may take longer. A
    process that dies meanwhile ends the others through torchrun.
    """
    if not torch.distributed.is_initialized():
        return
    key, share = f"meeting {next(_meetings)}", Share.of_torchrun()
    _count_to(share.processes, f"{key}: here")
    if share.rank:
        shared_store().add(f"{key}: left", 1)
    else:  # leaves last, since the store may end with its process
        _count_to(share.processes, f"{key}: left")


def _count_to(number: int, key: str) -> None:
    shared_store().add(key, 1)
    while shared_store().add(key, 0) < number:
        time.sleep(_POLL)


def every_process(value: Any) -> list[Any]:
    """Return the values that all processes pass, in the order of their ranks."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * Share.of_torchrun().processes
    torch.distributed.all_gather_object(values, value)
    return values
