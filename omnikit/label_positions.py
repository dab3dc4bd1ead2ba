"""Where the labels of a batch stand, found once on the CPU so that the device is never asked for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from omnikit.tokens import IGNORE

MULTIPLE = 64
"""Labelled positions are filled up to a multiple of so many: few shapes that come again are faster than new ones."""


class LabelPositions(NamedTuple):
    """The positions of a batch at which any of some streams has a label.

    A tuple, because DistributedDataParallel looks for tensors in what a module is given.
    """

    positions: Tensor  # [P], index into the B * L positions of the batch; 0 where P is filled up
    labels: Tensor  # [P, s], IGNORE where a stream has none
    counts: Tensor  # [s], labels of each stream


def label_positions(labels: Tensor) -> LabelPositions:
    """Find the positions of the labels [B, s, L] of s streams that share a head; P is 0 where there is no label."""
    by_position = labels.transpose(1, 2).flatten(0, 1)
    found = (by_position != IGNORE).any(dim=1).nonzero()[:, 0]
    missing = -len(found) % MULTIPLE
    return LabelPositions(
        nn.functional.pad(found, (0, missing)),
        nn.functional.pad(by_position[found], (0, 0, 0, missing), value=IGNORE),
        torch.count_nonzero(by_position != IGNORE, dim=0),
    )
