"""Deals micro-batches to optimiser steps of equal size, and those of a step to processes of equal cost."""

from __future__ import annotations

import heapq

import numpy as np

_EXCHANGES = 4
_ALIKE = 0.05  # sizes that differ by less than this part of the mean count as equal


def deal_to_steps(costs: np.ndarray, sizes: np.ndarray, steps: int) -> list[np.ndarray]:
    """Distribute micro-batches to steps, equally many to each, so that the sizes of steps are nearly equal.

    The micro-batches of a step are of like cost as far as their sizes allow, so that processes that compute them at the
    same time need not wait for each other.

    Args:
        costs: cost of each micro-batch [n]; n is a multiple of `steps`.
        sizes: number of sequences, or of labels, of each micro-batch [n].
        steps: number of steps.

    Returns:
        Indices of the micro-batches of each step.
    """
    step_of = _exchange_equals(_balance(sizes, steps), costs, sizes, steps)
    return [np.flatnonzero(step_of == step) for step in range(steps)]


def _balance(sizes: np.ndarray, steps: int) -> np.ndarray:
    """Return the step of each micro-batch: the largest one left goes to the smallest step that has room."""
    room = [len(sizes) // steps] * steps
    step_of = np.empty(len(sizes), dtype=np.int64)
    smallest = [(0.0, step) for step in range(steps)]
    for item in np.argsort(-sizes, kind="stable").tolist():
        total, step = heapq.heappop(smallest)
        step_of[item] = step
        room[step] -= 1
        if room[step]:
            heapq.heappush(smallest, (total + float(sizes[item]), step))
    return step_of


def _exchange_equals(step_of: np.ndarray, costs: np.ndarray, sizes: np.ndarray, steps: int) -> np.ndarray:
    """Exchange micro-batches of equal size between steps, such that costly steps get the costly ones."""
    alike = np.round(sizes / max(_ALIKE * float(sizes.mean()), 1e-9))
    order = np.lexsort((costs, alike))
    classes = np.split(order, np.flatnonzero(np.diff(alike[order])) + 1)
    for _ in range(_EXCHANGES):
        cost_of_step = np.bincount(step_of, weights=costs, minlength=steps)
        for equals in classes:
            theirs = step_of[equals]
            step_of[equals] = theirs[np.argsort(cost_of_step[theirs], kind="stable")]
    return step_of


def deal_to_processes(costs: np.ndarray, processes: int) -> list[list[int]]:
    """Distribute the micro-batches of a step to processes, equally many to each, by cost.

    Micro-batches that processes compute at the same time are of like cost; a process that has got less so far gets the
    costlier of them.

    Args:
        costs: cost of each micro-batch [n]; n is a multiple of `processes`.

    Returns:
        Indices of the micro-batches of each process, in the order in which it computes them.
    """
    ordered = np.argsort(-costs, kind="stable").tolist()
    shares: list[list[int]] = [[] for _ in range(processes)]
    sums = [0.0] * processes
    for first in range(0, len(ordered), processes):
        ranks = sorted(range(processes), key=sums.__getitem__)
        for rank, item in zip(ranks, ordered[first : first + processes], strict=True):
            shares[rank].append(item)
            sums[rank] += float(costs[item])
    return shares
