"""Packing of samples of unequal lengths into few rows of a batch, one after another."""

from __future__ import annotations

from collections.abc import Sequence

from omnikit.data.padding import rounded

_LONGER = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
"""Row lengths that are tried, relative to that of the longest sample."""
_ATTENTION = 6000
"""Row length at which attention costs as much as the rest of a block of width 1000, masked positions included.

A block of width D takes about 12 D^2 multiplications for a position, and 2 D for each position of its row.
"""


def pack_rows(lengths: Sequence[int], multiple: int) -> tuple[list[list[int]], int]:
    """Return the indices of the samples of each row, and the length of rows, for which a training step costs least.

    Longer rows need less padding, but more attention.

    Args:
        lengths: length of each sample in steps.
        multiple: number of steps whose multiple the row length is.
    """
    longest, total = rounded(max(lengths), multiple), sum(lengths)
    best: tuple[float, list[list[int]], int] | None = None
    for factor in _LONGER:
        length = rounded(int(factor * longest), multiple)
        cost = 1 + length / _ATTENTION
        if best is not None and total * cost >= best[0]:
            break  # even without padding
        rows = fill_rows(lengths, length)
        if best is None or len(rows) * length * cost < best[0]:
            best = len(rows) * length * cost, rows, length
    return best[1], best[2]


def fill_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Distribute samples to rows by first fit in decreasing order of length.

    Args:
        lengths: length of each sample in steps.
        row_length: number of steps of a row, at least those of the longest sample.

    Returns:
        Indices of the samples of each row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, left in enumerate(room) if left >= lengths[sample]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_length)
        rows[row].append(sample)
        room[row] -= lengths[sample]
    return rows


def most_steps(samples: int, steps: int, longest: int) -> int:
    """Return a bound on the steps of packed rows, padding included.

    Rows that are longer than the longest sample are used only if they have fewer steps in all. Otherwise there are at
    most as many rows as samples. By first fit, any two rows hold more steps than one has room for, since otherwise the
    samples of the second would stand in the first; so all rows but one are half full on average.

    Args:
        samples: number of samples.
        steps: steps of all samples.
        longest: steps of the longest sample, rounded up to a multiple as those of a row are.
    """
    return min(samples * longest, 2 * steps + longest)
