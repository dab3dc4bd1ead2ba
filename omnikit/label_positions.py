"""Positions of the labels of a batch, found once on the CPU so that the training step never waits for the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from omnikit.tokens import IGNORE

MULTIPLE = 64
"""Number to a multiple of which labelled positions are padded: few shapes that recur are faster than new ones."""


class LabelPositions(NamedTuple):
    """Positions of a batch at which at least one of several streams has a label.

    This is a tuple because DistributedDataParallel looks for tensors in what a module is given.
    """

    positions: Tensor  # [P], index into the B * L positions of the batch; 0 where padded
    labels: Tensor  # [P, s], IGNORE where a stream has none
    counts: Tensor  # [s], number of labels of each stream


def label_positions(labels: Tensor) -> LabelPositions:
    """Find the positions of the labels [B, s, L] of s streams that share a head; P is 0 if there is no label."""
    by_position = labels.transpose(1, 2).flatten(0, 1)
    found = (by_position != IGNORE).any(dim=1).nonzero()[:, 0]
    missing = -len(found) % MULTIPLE
    return LabelPositions(
        nn.functional.pad(found, (0, missing)),
        nn.functional.pad(by_position[found], (0, 0, 0, missing), value=IGNORE),
        torch.count_nonzero(by_position != IGNORE, dim=0),
    )
