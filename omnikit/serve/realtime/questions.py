"""Several items of a user as one question: the system answers either speech or text."""

from __future__ import annotations

import numpy as np

from omnikit.serve.realtime.actions import RATE, SpokenQuestion, WrittenQuestion
from omnikit.serve.realtime.input_buffer import restored
from omnikit.serve.realtime.items import Item


def question_of(items: list[Item], max_seconds: float) -> SpokenQuestion | WrittenQuestion | None:
    """Join the items of a user into one question; None = there is nothing to answer.

    The last item that says something decides the kind. If it is spoken, it and the spoken items before it are joined
    in their order, as many as fit into `max_seconds`; the written ones do not count. If it is written, the texts of all
    written items are joined by spaces, and the spoken ones do not count.
    """
    said = [item for item in items if len(item.samples) or item.words]
    if not said:
        return None
    if not len(said[-1].samples):
        return WrittenQuestion(" ".join(item.words for item in said if not len(item.samples)))
    found: list[np.ndarray] = []
    for item in reversed(said):
        if found and sum(map(len, found)) + len(item.samples) > max_seconds * RATE:
            break
        if len(item.samples):
            found.insert(0, item.samples)
    return SpokenQuestion(restored(np.concatenate(found)))
