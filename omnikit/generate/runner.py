"""The thread that steps a running batch."""

from __future__ import annotations

import os
import weakref
from threading import Condition, Thread, current_thread

import torch

from omnikit.generate.request import Request
from omnikit.generate.running_batch import RunningBatch

IDLE_SECONDS = 5.0
"""Seconds without anything to do after which the thread ends; the next question starts another."""


class Runner:
    """Thread that steps a `RunningBatch`, from the first question on until it is closed or idle.

    Args:
        batch: used by the runner's thread alone from now on.
    """

    def __init__(self, batch: RunningBatch):
        self._state = state = _State(batch)
        # also when the program ends or the last reference to this is dropped
        self._close = weakref.finalize(self, _close, state)

    def submit(self, request: Request) -> Request:
        """Let a question wait for its turn.

        Raises:
            QueueFull: too many wait.
            RuntimeError: this was closed, or the process was forked after the thread had started.
        """
        request.runner = self  # a system may be dropped while somebody listens to its answer
        self._state.submit(request)
        return request

    def close(self) -> None:
        """End all answers as cancelled, and the thread. Further questions are refused."""
        self._close()


class _State:
    """State that the thread shares with those who ask. The thread holds no reference to the `Runner`, so that this can
    be dropped while the thread waits."""

    def __init__(self, batch: RunningBatch):
        self.batch, self.changed = batch, Condition()
        self.thread: Thread | None = None
        self.process: int | None = None
        self.threads_of_torch = torch.get_num_threads()
        self.closed = False

    def submit(self, request: Request) -> None:
        if self.forked:
            raise RuntimeError("generation: the process was forked after the first question; load the system anew")
        with self.changed:
            if self.closed:
                raise RuntimeError("generation: it was closed; load the system again")
            if self.thread is None:
                thread = Thread(target=self.work, name="omnikit-generate", daemon=True)
                thread.start()  # it waits for what this thread holds
                self.process, self.thread = os.getpid(), thread
            self.threads_of_torch = torch.get_num_threads()
            self.batch.submit(request)
            self.changed.notify()

    @property
    def forked(self) -> bool:
        """Whether this is a copy in another process, whose locks may be held for ever. No lock is needed to know it."""
        return self.process is not None and self.process != os.getpid()

    def work(self) -> None:
        try:
            while self._wait():
                if torch.get_num_threads() != self.threads_of_torch:  # torch counts them for each thread
                    torch.set_num_threads(self.threads_of_torch)
                self.batch.turn()
            if self.closed:
                self.batch.close()
        except BaseException as error:  # nobody may wait for ever for an answer that does not grow any more
            with self.changed:
                self.thread = None
                self.batch.close(error)
            raise

    def _wait(self) -> bool:
        """Wait for something to do, and return whether there is; otherwise the thread ends."""
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
        if thread is not current_thread():  # which ends by itself
            thread.join()
    else:
        state.batch.close()
