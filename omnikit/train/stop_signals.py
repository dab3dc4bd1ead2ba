"""Ctrl-C and SIGTERM during training: finish the optimiser step, save a checkpoint, say how to go on."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

from omnikit.errors import Stopped

_ONE = 2.0  # seconds; a scheduler may signal a process itself and again through torchrun


class StopRequest:
    """A context in which the first SIGINT or SIGTERM is noted in `signal` and a second one, some seconds later, stops
    at once.

    Batch schedulers send SIGTERM some seconds before they kill a job, which is enough for a checkpoint. Signal handlers
    belong to the main thread; in another one nothing is changed.
    """

    def __init__(self) -> None:
        self.signal = 0
        """Number of the signal that came; 0 = none."""
        self.came = 0.0  # on the monotonic clock
        self.before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python

    def note(self, number: int, frame: FrameType | None) -> None:
        """Take a signal, as the handler that Python calls.

        Raises:
            Stopped: it is the second one.
        """
        if self.signal and time.monotonic() - self.came < _ONE:
            return
        if self.signal:
            raise stopped_by(number, "at once; start again with the same command to go on from the last checkpoint")
        self.signal, self.came = number, time.monotonic()


def stopped_by(number: int, how: str) -> Stopped:
    """Return the error that ends a run for a signal, with the exit status that shells expect of one."""
    return Stopped(f"training stopped by {signal.Signals(number).name} {how}", status=128 + number)
