"""Positions of the labels in a batch, found on the CPU so that training does not synchronise with the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from omnikit.tokens import IGNORE

MULTIPLE = 64
"""Multiple to which the number of labelled positions of a batch is padded, since few distinct shapes are faster."""


class LabelPositions(NamedTuple):
    """Positions of a batch at which any of a group of streams has a label, with these labels.

    A tuple, because DistributedDataParallel finds tensors only in tuples, lists and dicts.
    """

    positions: Tensor  # [P], index into the B * L positions of the batch; 0 in the padding
    labels: Tensor  # [P, s], IGNORE where a stream has no label
    counts: Tensor  # [s], number of labels of each stream
    tasks: Tensor  # [P], number of the task of the sample at each position; 0 in the padding


def label_positions(labels: Tensor, tasks: Tensor | None = None) -> LabelPositions:
    """Return the positions that have a label in labels [B, s, L] of s streams that share a head, with these labels.

    Their number P is 0 if there are no labels, and otherwise padded to a multiple of `MULTIPLE`.

    Args:
        tasks: number of the task of each sample [B]; None means that all are of task 0.
    """
    tasks = labels.new_zeros(len(labels)) if tasks is None else tasks
    by_position = labels.transpose(1, 2).flatten(0, 1)
    found = (by_position != IGNORE).any(dim=1).nonzero()[:, 0]
    missing = -len(found) % MULTIPLE
    return LabelPositions(
        nn.functional.pad(found, (0, missing)),
        nn.functional.pad(by_position[found], (0, 0, 0, missing), value=IGNORE),
        torch.count_nonzero(by_position != IGNORE, dim=0),
        nn.functional.pad(tasks[found // labels.shape[2]], (0, missing)),
    )
