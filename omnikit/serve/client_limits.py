"""Limits of what clients have open at the same time: a maximum in all, and one for each client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from omnikit.serve.refusals import busy, too_many


class ClientLimits:
    """A count of what each client has open, with a maximum in all and one for each client.

    Args:
        what: what is counted, as a plural for messages and codes: `sessions` or `requests`.
        most: maximum number in all.
        most_per_client: maximum number of one client.
    """

    def __init__(self, what: str, most: int, most_per_client: int):
        self.what, self.most, self.most_per_client = what, most, most_per_client
        self._open: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._open.total()

    @contextmanager
    def taken(self, client: str) -> Iterator[None]:
        """Context manager that counts one more of a client.

        Args:
            client: address of the client, without its port.

        Raises:
            Refusal: one of the maxima is reached; 429 for that of the client, 503 for that in all.
        """
        if self._open[client] >= self.most_per_client:
            words = f"{self.most_per_client} {self.what} of this client are open, the maximum"
            raise too_many(words, f"too_many_{self.what}")
        if len(self) >= self.most:
            raise busy(f"{self.most} {self.what} are open, the maximum", f"too_many_{self.what}")
        self._open[client] += 1
        try:
            yield
        finally:
            self._open[client] -= 1
            self._open += Counter()  # drops clients that have nothing open
