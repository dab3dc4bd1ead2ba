"""The samples of a micro-batch, with what a training step must know about the whole optimiser step.

A sampler yields a `MicroBatch` of indices, `Samples.__getitems__` replaces the indices by items, and the collate
function pads these to a `Batch`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


class MicroBatch(list[Any]):
    """A list of sample indices, or of the samples, that one process computes together.

    Args:
        samples: indices or items of the samples.
        step_labels: number of labels in all micro-batches of the optimiser step, over all processes: for each task in
            `omnikit.tasks.TASK_NAMES` those of the text stream and those of each audio stream [tasks, 2]; None if the
            micro-batch is a whole step.
        ends_step: whether the optimiser step follows this micro-batch.
        packed: whether a row of the batch may hold several samples.
        step: number of the optimiser step in the run, counted from 0.
    """

    def __init__(
        self,
        samples: Iterable[Any] = (),
        step_labels: np.ndarray | None = None,
        ends_step: bool = True,
        packed: bool = False,
        step: int = 0,
    ) -> None:
        super().__init__(samples)
        self.step_labels, self.ends_step, self.packed, self.step = step_labels, ends_step, packed, step

    def with_samples(self, samples: Iterable[Any]) -> MicroBatch:
        """Return a micro-batch of other samples in the same optimiser step."""
        return MicroBatch(samples, self.step_labels, self.ends_step, self.packed, self.step)
