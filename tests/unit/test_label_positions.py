"""Test the function that finds the positions with labels against a loop over all positions."""

from __future__ import annotations

import pytest
import torch

from omnikit.label_positions import MULTIPLE, label_positions
from omnikit.tokens import IGNORE


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 32), (3, 50)])
def test_every_label_stands_where_it_stood(batch, length, streams, share):
    draw = torch.Generator().manual_seed(batch)
    labels = torch.randint(9, (batch, streams, length), generator=draw)
    labels[torch.rand(labels.shape, generator=draw) >= share] = IGNORE
    found = label_positions(labels)
    expected = {
        b * length + t: labels[b, :, t].tolist()
        for b in range(batch) for t in range(length) if any(each != IGNORE for each in labels[b, :, t].tolist())
    }  # fmt: skip
    count = len(expected)
    assert dict(zip(found.positions[:count].tolist(), found.labels[:count].tolist(), strict=True)) == expected
    assert len(found.positions) == len(found.labels) == -(-count // MULTIPLE) * MULTIPLE
    assert (found.labels[count:] == IGNORE).all() and not found.positions[count:].any()
    assert found.counts.tolist() == [int((labels[:, s] != IGNORE).sum()) for s in range(streams)]
