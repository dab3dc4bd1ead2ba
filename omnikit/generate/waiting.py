"""Requests that wait for slots of a running batch, and the order in which they are admitted.

Requests are admitted in their order. One that continues a conversation is passed over until the turns before it have
ended. Requests of low priority are admitted while no other one waits, one at a time, and leave a share of the slots
free, so that an ordinary request finds a slot at once where it would have found one without them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from threading import Lock
from time import monotonic

from omnikit.generate.request import Request

KEPT_FREE = 4
"""Requests of low priority leave one slot out of so many free for others."""


class QueueFull(RuntimeError):
    """Error of a request that finds the maximum number of requests waiting, or that has waited for too long itself."""


class WaitingRequests:
    """Requests in the order in which they are to be admitted; any thread may call the methods.

    Args:
        capacity: number of slots of the running batch.
        most: maximum number of requests that wait; those of low priority take no places of others.
        seconds: maximum number of seconds for which a request waits; None = any time.
    """

    def __init__(self, capacity: int, most: int, seconds: float | None = None):
        self.capacity, self.most, self.seconds = capacity, most, seconds
        self._ordinary: deque[Request] = deque()
        self._low: deque[Request] = deque()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._ordinary) + len(self._low)

    def append(self, request: Request) -> None:
        """Append a request, and its turn to the conversation that it continues, if any.

        Raises:
            QueueFull: the maximum number of requests is waiting.
        """
        with self._lock:
            if (len(self) if request.low_priority else len(self._ordinary)) >= self.most:
                raise QueueFull(f"{self.most} questions are waiting already")
            if request.history is not None:
                request.history.expect(request.turn, request)
            request.submitted = monotonic()
            self._queue(request).append(request)

    def put_back(self, requests: Iterable[Request]) -> None:
        """Put requests that were taken before, in their order, before all others of their priority."""
        with self._lock:
            for request in reversed(list(requests)):
                self._queue(request).appendleft(request)

    def take(self, free: int) -> Request | None:
        """Remove and return the next request that is not of low priority; None = there is none, or too few free slots.
        """
        with self._lock:
            request = self._next()
            if request is None or request.rows > free:
                return None
            self._ordinary.remove(request)
            return request

    def take_low(self, free: int) -> Request | None:
        """Remove and return the next request of low priority; None = there is none, or others have precedence."""
        with self._lock:
            request = next((each for each in self._low if each.may_begin), None)
            if request is None or self._ordinary:
                return None
            kept_free = min(self.capacity // KEPT_FREE, self.capacity - request.rows)
            if request.rows > free - kept_free:
                return None
            self._low.remove(request)
            return request

    def any_ready(self, free: int) -> bool:
        """Return whether `take` would return a request."""
        with self._lock:
            request = self._next()
            return request is not None and request.rows <= free

    def take_ended(self) -> list[tuple[Request, str]]:
        """Remove and return the requests that are to end before they began, with the reasons, see `omnikit.generate`.
        """
        with self._lock:
            waiting = [*self._ordinary, *self._low]
            ended = [(request, end) for request in waiting if (end := request.truncated_by) is not None]
            for request, _ in ended:
                self._queue(request).remove(request)
            return ended

    def take_overdue(self) -> list[Request]:
        """Remove and return the requests that have waited for too long."""
        if self.seconds is None:
            return []
        with self._lock:
            before = monotonic() - self.seconds
            found = [request for request in (*self._ordinary, *self._low) if request.submitted <= before]
            for request in found:
                self._queue(request).remove(request)
            return found

    def take_all(self) -> list[Request]:
        """Remove and return all requests."""
        with self._lock:
            found = [*self._ordinary, *self._low]
            self._ordinary.clear()
            self._low.clear()
            return found

    def _queue(self, request: Request) -> deque[Request]:
        return self._low if request.low_priority else self._ordinary

    def _next(self) -> Request | None:
        return next((request for request in self._ordinary if request.may_begin), None)
