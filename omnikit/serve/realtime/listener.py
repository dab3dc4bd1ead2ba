"""Turn detection for one connection: its audio is fed to a detector in order, outside of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from omnikit.serve.realtime.actions import RATE, Detection, Heard
from omnikit.serve.realtime.turn_detector import TurnDetector

_SLICE = RATE
"""Samples that are fed at once: longer audio is cut, so that other connections have their turn in between."""
_POOL = ThreadPoolExecutor(max_workers=1, thread_name_prefix="omnikit-turns")
"""Thread in which all detectors run: one window of 32 ms takes a fraction of a millisecond."""


class Listener:
    """A turn detector that is fed in a thread, and whose reports arrive in the event loop.

    Args:
        report: function that is called in the event loop with each report, in the order of the audio.
        make: constructor of a detector.
    """

    def __init__(self, report: Callable[[Heard], None], make: Callable[[Detection], TurnDetector] = TurnDetector):
        self._report, self._make = report, make
        self._detector: TurnDetector | None = None
        self._work: asyncio.Queue[Callable[[], list[Heard]] | None] = asyncio.Queue()

    def detect(self, detection: Detection | None) -> None:
        """Change the settings of the detector once all audio before has been heard, or make one; None = remove it."""
        self._work.put_nowait(partial(self._detect, detection))

    def listen(self, samples: np.ndarray) -> None:
        """Feed samples [n] at `RATE` to the detector."""
        for at in range(0, len(samples), _SLICE):
            self._work.put_nowait(partial(self._push, samples[at : at + _SLICE]))

    def pause_idle(self) -> None:
        """Stop waiting for the user to speak, as an answer begins."""
        self._work.put_nowait(partial(self._idle, start=False))

    def start_idle(self) -> None:
        """Begin to wait for the user to speak, after an answer."""
        self._work.put_nowait(partial(self._idle, start=True))

    def _detect(self, detection: Detection | None) -> list[Heard]:
        if self._detector is not None and detection is not None:
            self._detector.change(detection)
        else:
            self._detector = None if detection is None else self._make(detection)
        return []

    def _push(self, samples: np.ndarray) -> list[Heard]:
        return [] if self._detector is None else self._detector.push(samples)

    def _idle(self, *, start: bool) -> list[Heard]:
        if self._detector is not None:
            self._detector.start_idle() if start else self._detector.pause_idle()
        return []

    async def caught_up(self) -> None:
        """Wait until all that was fed has been heard and reported."""
        await self._work.join()

    async def run(self) -> None:
        """Pass queued samples to the detector until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            work = await self._work.get()
            for heard in await loop.run_in_executor(_POOL, work):
                self._report(heard)
            self._work.task_done()
