"""A watchdog that ends a training of several processes when one of them stands still or is gone.

The other processes would otherwise wait for it in a collective operation. Each process publishes in the shared store
how far it is; the first process compares all of them, and the others watch the first.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable

from torch.distributed import Store

from omnikit.torchrun import Share

logger = logging.getLogger(__name__)
LOST = 45.0
"""Seconds without a sign of life after which a process counts as gone."""
_PERIOD = 5.0  # seconds between two signs of life
_LEFT = -1  # published by a process that has left the training loop
_STOP = "stop"
_FAILED = 1


class Watchdog:
    """A thread that ends its process once a process of the training has not finished a step for too long.

    Args:
        store: store that all processes share.
        hang_timeout: minutes without progress that are accepted.
        end: function that ends the process with an exit status; another one for tests.
    """

    def __init__(self, store: Store, hang_timeout: float, end: Callable[[int], None] = os._exit):
        self.share, self.store, self.end = Share.of_torchrun(), store, end
        self.minutes, self.limit = hang_timeout, 60 * hang_timeout
        self.period, self.lost = min(_PERIOD, self.limit / 20), min(LOST, self.limit)
        self.count = self.signs = 0
        self.seen = {rank: _Seen() for rank in (range(self.share.processes) if self.share.rank == 0 else (0,))}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Note that this process has made progress: it has a batch, has computed its loss, or is done with it."""
        self.count += 1

    def start(self) -> None:
        """Begin to watch; call it in all processes after their preparations."""
        self.thread.start()

    def stop(self) -> None:
        """Leave the watch: from now on the other processes do not mind that this one stands still."""
        if self.thread.is_alive():
            self.ended.set()
            self.thread.join()

    def _run(self) -> None:
        try:
            while not self.ended.wait(self.period):
                self._publish(self.count)
                self._look()
            self._publish(_LEFT)
        except RuntimeError as error:  # torch's errors of connections
            if not self.ended.is_set():
                logger.error("the store of the training cannot be reached: %s", error)
                self._stop("the processes of the training have lost each other; stopping")

    def _publish(self, count: int) -> None:
        self.signs += 1
        self.store.set(str(self.share.rank), f"{count} {self.signs}")

    def _look(self) -> None:
        """Compare the progress of the watched processes with that at earlier looks."""
        if self.share.rank and self.store.check([_STOP]):  # the first process has said why
            self.end(_FAILED)
        for rank, seen in self.seen.items():
            if self.store.check([str(rank)]):
                seen.update(*map(int, self.store.get(str(rank)).split()))
        watched = {rank: seen for rank, seen in self.seen.items() if seen.count != _LEFT}
        if gone := [rank for rank, seen in watched.items() if seen.without_sign > self.lost]:
            self._stop(f"{_named(gone)} given no sign of life for {self.lost:.0f} seconds; stopping")
        elif self.share.rank == 0 and (late := _last(watched, self.limit)):
            minutes = f"{self.minutes:.15g} minute{'' if self.minutes == 1 else 's'}"
            self._stop(f"{_named(late)} not finished a step for {minutes} (--hang_timeout); stopping")

    def _stop(self, message: str) -> None:
        """End all processes; one of them prints the message: the first, or the second if the first is gone."""
        if self.share.rank <= 1:
            logger.error(message)
            print(f"error: {message}", file=sys.stderr, flush=True)
        if self.share.rank == 0:
            try:
                self.store.set(_STOP, message)
            except RuntimeError:  # then the others cannot be reached, and notice it themselves
                logger.error("the other processes could not be told")
        for handler in logging.getLogger().handlers:
            handler.flush()
        self.end(_FAILED)


class _Seen:
    """The last progress that was seen of a process, and since when."""

    def __init__(self) -> None:
        self.count = self.signs = 0
        self.counted = self.signed = time.monotonic()

    def update(self, count: int, signs: int) -> None:
        now = time.monotonic()
        if count != self.count:
            self.count, self.counted = count, now
        if signs != self.signs:
            self.signs, self.signed = signs, now

    @property
    def without_sign(self) -> float:
        return time.monotonic() - self.signed


def _last(watched: dict[int, _Seen], limit: float) -> list[int]:
    """Return the ranks that are furthest behind if even they have made no progress for `limit` seconds.

    All processes stand still when one does, since they wait for it; the one that they wait for has counted least.
    """
    if not watched:
        return []
    least = min(seen.count for seen in watched.values())
    behind = [rank for rank, seen in watched.items() if seen.count == least]
    waited = min(time.monotonic() - watched[rank].counted for rank in behind)
    return behind if waited > limit else []


def _named(ranks: list[int]) -> str:
    return f"rank {ranks[0]} has" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} have"
