"""Handling of Ctrl-C and SIGTERM during training: finish the optimiser step, save a checkpoint, then stop."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

from omnikit.errors import Stopped

_ONE = 2.0  # seconds; a scheduler may signal a process itself and again through torchrun


class StopRequest:
    """A context manager that records the first SIGINT or SIGTERM; a second one, 2 seconds later or more, raises.

    Batch schedulers send SIGTERM some seconds before they kill a job, which is enough for a checkpoint. Signal handlers
    can only be set in the main thread; in other threads nothing is changed.
    """

    def __init__(self) -> None:
        self.signal = 0
        """Number of the signal that was received; 0 means none."""
        self.came = 0.0  # time of the signal on the monotonic clock, seconds
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
        """Record a signal; this is the handler that Python calls.

        Raises:
            Stopped: an earlier signal was received at least 2 seconds before.
        """
        if self.signal and time.monotonic() - self.came < _ONE:
            return
        if self.signal:
            raise stopped_by(number, "at once; start again with the same command to go on from the last checkpoint")
        self.signal, self.came = number, time.monotonic()


def stopped_by(number: int, how: str) -> Stopped:
    """Return the error that stops a run after a signal, with the exit status 128 + its number as in shells."""
    return Stopped(f"training stopped by {signal.Signals(number).name} {how}", status=128 + number)
