"""Patterns against slow twins, over a grid of sizes."""

from __future__ import annotations

import pytest
import torch

from omnikit.patterns import Delayed, Flattened, Parallel

SIZES = [(k, t) for k in (1, 2, 3, 7) for t in (0, 1, 2, 5)]


def slow_delayed(frames: list[list[str]], delays: list[int]) -> list[list[str]]:
    """Rows of names -> rows shifted to the right, cut at the last code."""
    if not frames[0]:
        return [[] for _ in frames]
    length = max(delay + len(row) for delay, row in zip(delays, frames, strict=True))
    return [["."] * d + row + ["."] * (length - d - len(row)) for d, row in zip(delays, frames, strict=True)]


def slow_flattened(frames: list[list[str]], lead: int) -> list[list[str]]:
    codes = [frames[k][t] for t in range(len(frames[0])) for k in range(len(frames))]
    return [["."] * lead + codes] if codes else [[]]


def patterns(k: int):
    """Each pattern with its twin; delays grow, fall, jump and repeat."""
    rising, falling = list(range(1, k + 1)), list(range(k, 0, -1))
    jumping, repeating = [(3 * i) % 4 for i in range(k)], [(0, 0, 2, 1)[i % 4] for i in range(k)]
    for lead in (0, 1, 4):
        shifted = [d + lead for d in rising]
        yield Delayed(num_codebooks=k, text_lead=lead), lambda f, d=shifted: slow_delayed(f, d)
        for delays in (falling, jumping, repeating):
            shifted = [d + lead for d in delays]
            yield Delayed(num_codebooks=k, delays=delays, text_lead=lead), lambda f, d=shifted: slow_delayed(f, d)
        yield Parallel(num_codebooks=k, text_lead=lead), lambda f, d=lead: slow_delayed(f, [d] * k)
        yield Flattened(num_codebooks=k, text_lead=lead), lambda f, d=lead: slow_flattened(f, d)
    yield Parallel(num_codebooks=k), lambda f: slow_delayed(f, [0] * k)
    yield Flattened(num_codebooks=k), lambda f: slow_flattened(f, 1)


def names(k: int, t: int) -> tuple[torch.Tensor, list[list[str]]]:
    values = torch.arange(k * t).reshape(1, k, t)
    return values, [[str(int(v)) for v in row] for row in values[0]]


@pytest.mark.parametrize(("k", "t"), SIZES)
def test_interleave_equals_slow_twin(k, t):
    values, rows = names(k, t)
    for pattern, twin in patterns(k):
        steps = pattern.interleave(values)[0]
        drawn = [["." if v < 0 else str(int(v)) for v in row] for row in steps]
        assert drawn == twin(rows)
        assert steps.shape[-1] == pattern.num_steps(t)


@pytest.mark.parametrize(("k", "t"), SIZES)
def test_deinterleave_is_the_inverse_on_every_prefix(k, t):
    values, _ = names(k, t)
    for pattern, _ in patterns(k):
        steps = pattern.interleave(values)
        for cut in range(steps.shape[-1] + 1):
            frames = pattern.deinterleave(steps[..., :cut])
            assert torch.equal(frames, values[..., : frames.shape[-1]])
            complete = [n for n in range(t + 1) if pattern.num_steps(n) <= cut]
            assert frames.shape[-1] == max(complete)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_codebook_at_says_what_interleave_puts_there(k):
    books = torch.arange(k)[None, :, None].expand(1, k, 4)
    for pattern, _ in patterns(k):
        steps = pattern.interleave(books)[0]
        table = pattern.codebooks(steps.shape[-1])
        assert torch.equal(steps[steps >= 0], table[steps >= 0])
        for step in range(min(pattern.first)):
            assert pattern.codebook_at(step) == [-1] * len(pattern.carries)


def test_default_delays_are_the_published_ones():
    assert Delayed(num_codebooks=7).start == [1, 2, 3, 4, 5, 6, 7]


def test_wrong_delays_are_refused():
    with pytest.raises(ValueError, match="2 delays for 3 codebooks"):
        Delayed(num_codebooks=3, delays=[0, 1])
    with pytest.raises(ValueError, match="start before the answer"):
        Delayed(num_codebooks=2, delays=[-1, 0])
    with pytest.raises(ValueError, match="start before the answer"):
        Parallel(num_codebooks=2, text_lead=-1)
    with pytest.raises(ValueError, match="text_lead: -1"):
        Flattened(num_codebooks=2, text_lead=-1)
