"""Figures of the server for Prometheus, on a registry of their own, so that a process may have several servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from omnikit.generate import CANCELLED, END, QueueFull

KINDS = ("realtime", "chat", "speech", "transcription", "chat_published")
"""Kinds of answers, by the call that asked for them."""
ERROR = "error"
"""End of an answer that failed."""
TOLERANCE = 0.005
"""Seconds by which a chunk may come late without counting as an under-run; a sound device buffers more than that."""
_SECONDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_FACTORS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0, 5.0)
_GAPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Counters, histograms and gauges of one server."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        kind = ["kind"]
        self.first_audio = Histogram(
            "omnikit_first_audio_seconds", "Seconds from the question to the first chunk with samples.", kind,
            registry=own, buckets=_SECONDS,
        )  # fmt: skip
        self.real_time_factor = Histogram(
            "omnikit_real_time_factor", "Seconds of computing per second of speech of an answer.", kind,
            registry=own, buckets=_FACTORS,
        )  # fmt: skip
        self.gaps = Histogram(
            "omnikit_gap_seconds", "Silence before a late chunk, for a listener who plays from the first one on.", kind,
            registry=own, buckets=_GAPS,
        )  # fmt: skip
        self.underruns = Counter("omnikit_underruns", "Chunks that came after all earlier ones were played.", kind,
                                 registry=own)  # fmt: skip
        self.speech = Counter("omnikit_speech_seconds", "Seconds of speech that were generated.", kind, registry=own)
        self.answers = Counter("omnikit_answers", "Answers by their end.", ["kind", "end"], registry=own)
        self.errors = Counter("omnikit_errors", "Answers and requests that failed, by kind of error.",
                              ["kind", "error"], registry=own)  # fmt: skip
        self.refusals = Counter("omnikit_refusals", "Requests and sessions that were refused.", ["reason"],
                                registry=own)  # fmt: skip
        self.responses = Counter("omnikit_http_responses", "HTTP responses by status.", ["status"], registry=own)
        self.running = Gauge("omnikit_running_answers", "Answers that are being generated.", kind, registry=own)
        self.sessions = Gauge("omnikit_sessions", "Open Realtime sessions.", registry=own)
        self._queue = Gauge("omnikit_queue", "Questions that wait for a slot.", ["model"], registry=own)
        self._used = Gauge("omnikit_slots_in_use", "Slots of the running batch in use.", ["model"], registry=own)
        self._slots = Gauge("omnikit_slots", "Slots of the running batch.", ["model"], registry=own)
        for name in KINDS:  # so that a rate is defined from the first scrape on
            self.underruns.labels(name)
            self.running.labels(name)

    def watch(self, model: str, waiting: Callable[[], int], in_use: Callable[[], int], slots: int) -> None:
        """Report the queue and the slots of a served system at each scrape."""
        self._queue.labels(model).set_function(waiting)
        self._used.labels(model).set_function(in_use)
        self._slots.labels(model).set(slots)

    @contextmanager
    def answer(self, kind: str) -> Iterator[Meter]:
        """Context manager that measures one answer, from its question to its end.

        An exception that leaves it counts as an error by its class, a cancelled task as a cancelled answer. A question
        for which the queue has no room is no answer: whoever reports that counts a refusal, and this counts nothing.

        Args:
            kind: a name in `KINDS`.
        """
        meter, running = Meter(), self.running.labels(kind)
        running.inc()
        try:
            yield meter
        except (asyncio.CancelledError, GeneratorExit):
            meter.end = CANCELLED
            raise
        except QueueFull:
            meter.end = None
            raise
        except Exception as error:
            meter.end = ERROR
            self.failed(kind, error)
            raise
        finally:
            running.dec()
            if meter.end is not None:
                self._add(kind, meter)

    def failed(self, kind: str, error: BaseException) -> None:
        """Count an error by its class."""
        self.errors.labels(kind, type(error).__name__).inc()

    def refused(self, reason: str) -> None:
        """Count a refusal by its reason, such as `queue` or `token`."""
        self.refusals.labels(reason).inc()

    def _add(self, kind: str, meter: Meter) -> None:
        self.answers.labels(kind, meter.end).inc()
        if meter.first_audio is None:
            return
        self.first_audio.labels(kind).observe(meter.first_audio)
        self.real_time_factor.labels(kind).observe(meter.took / meter.seconds)
        self.speech.labels(kind).inc(meter.seconds)
        self.underruns.labels(kind).inc(len(meter.gaps))
        for gap in meter.gaps:
            self.gaps.labels(kind).observe(gap)


class Meter:
    """Times of the chunks of one answer, as a listener notices them who plays each as soon as it can be played."""

    def __init__(self, now: Callable[[], float] = monotonic):
        self._now = now
        self.began = now()
        self.end: str | None = END
        """Reason why the answer ended, one of `omnikit.generate.ENDS` or `ERROR`; None = it was refused."""
        self.first_audio: float | None = None
        """Seconds from the question to the first chunk with samples; None before it."""
        self.seconds = 0.0
        """Seconds of speech so far."""
        self.took = 0.0
        """Seconds from the question to the last chunk with samples."""
        self.gaps: list[float] = []
        """Silence in seconds before each late chunk."""
        self._played = 0.0

    def chunk(self, samples: object, rate: int) -> None:
        """Record a chunk when it is sent.

        Args:
            samples: its samples [n], or their number; a chunk without samples is ignored.
            rate: sample rate in Hz.
        """
        number = samples if isinstance(samples, int) else len(samples)
        if not number:
            return
        now = self._now()
        self.took = now - self.began
        if self.first_audio is None:
            self.first_audio, self._played = self.took, now
        if (late := now - self._played) > TOLERANCE:
            self.gaps.append(late)
            self._played = now
        self._played += number / rate
        self.seconds += number / rate
