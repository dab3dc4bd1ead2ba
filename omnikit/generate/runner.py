"""The thread that steps a running batch while there are requests."""

from __future__ import annotations

import os
import weakref
from threading import Condition, Thread, current_thread

import torch

from omnikit.generate.request import Request
from omnikit.generate.running_batch import RunningBatch

IDLE_SECONDS = 5.0
"""Seconds without requests after which the decoding thread ends; the next request starts another."""


class Runner:
    """A running batch with a thread that steps it, from the first request on until the runner is closed or idle.

    Args:
        batch: running batch, which only this thread may step from now on.
    """

    def __init__(self, batch: RunningBatch):
        self._state = state = _State(batch)
        # called when the program ends, too, or when the last reference to this object is dropped
        self._close = weakref.finalize(self, _close, state)

    def submit(self, request: Request) -> Request:
        """Queue a request for decoding, and return it.

        Raises:
            QueueFull: the maximum number of requests is waiting.
            RuntimeError: the runner is closed, or the process was forked after its thread had started.
        """
        request.runner = self  # a system may be garbage-collected while its answer is still being streamed
        self._state.submit(request)
        return request

    @property
    def load(self) -> tuple[int, int]:
        """Number of requests that wait for slots, and number of slots in use."""
        batch = self._state.batch
        return len(batch.waiting), len(batch.owners)

    def close(self) -> None:
        """Cancel all requests, end the thread, and refuse further requests."""
        self._close()


class _State:
    """State shared by the decoding thread and the threads that submit requests.

    The decoding thread holds no reference to the `Runner`, so that the runner can be garbage-collected while it waits.
    """

    def __init__(self, batch: RunningBatch):
        self.batch, self.changed = batch, Condition()
        self.thread: Thread | None = None
        self.process: int | None = None
        self.threads_of_torch = torch.get_num_threads()
        self.closed = False

    def submit(self, request: Request) -> None:
        if self.forked:
            raise RuntimeError("generation: the process was forked after the first question; load the system again")
        with self.changed:
            if self.closed:
                raise RuntimeError("generation: it was closed; load the system again")
            if self.thread is None:
                thread = Thread(target=self.work, name="omnikit-generate", daemon=True)
                thread.start()  # it waits for the lock that this thread holds
                self.process, self.thread = os.getpid(), thread
            self.threads_of_torch = torch.get_num_threads()
            self.batch.submit(request)
            self.changed.notify()

    @property
    def forked(self) -> bool:
        """Whether this state is a copy in a forked process, whose locks may never be released; read without a lock."""
        return self.process is not None and self.process != os.getpid()

    def work(self) -> None:
        try:
            while self._wait():
                if torch.get_num_threads() != self.threads_of_torch:  # torch has this setting per thread
                    torch.set_num_threads(self.threads_of_torch)
                self.batch.turn()
            if self.closed:
                self.batch.close()
        except BaseException as error:  # otherwise callers would wait for ever for an answer that nobody decodes
            with self.changed:
                self.thread = None
                self.batch.close(error)
            raise

    def _wait(self) -> bool:
        """Wait until there are requests; return False if the thread is to end, because it was idle or closed."""
        with self.changed:
            if not self.batch.busy and not self.closed:
                self.changed.wait_for(lambda: self.batch.busy or self.closed, IDLE_SECONDS)
            if self.batch.busy and not self.closed:
                return True
            self.thread = None
            return False


def _close(state: _State) -> None:
    if state.forked:
        return
    with state.changed:
        state.closed, thread = True, state.thread
        state.changed.notify()
    if thread is not None:
        if thread is not current_thread():  # the decoding thread itself sees `closed` and ends
            thread.join()
    else:
        state.batch.close()
