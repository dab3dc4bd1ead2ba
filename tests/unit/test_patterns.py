"""Test decoding patterns against slow, obvious implementations over a grid of sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omnikit.interfaces import Pattern
from omnikit.patterns import AffinePattern, Delayed, Flattened, Parallel
from tests.unit.contracts.own_parts import OwnPattern

SIZES = [(k, t) for k in (1, 2, 3, 7) for t in (0, 1, 2, 5)]


def slow_delayed(frames: list[list[str]], delays: list[int]) -> list[list[str]]:
    """Shift each codebook's list of code names to the right by its delay, and pad all to the same length."""
    if not frames[0]:
        return [[] for _ in frames]
    length = max(delay + len(row) for delay, row in zip(delays, frames, strict=True))
    return [["."] * d + row + ["."] * (length - d - len(row)) for d, row in zip(delays, frames, strict=True)]


def slow_flattened(frames: list[list[str]], lead: int) -> list[list[str]]:
    codes = [frames[k][t] for t in range(len(frames[0])) for k in range(len(frames))]
    return [["."] * lead + codes] if codes else [[]]


def patterns(k: int):
    """Yield each decoding pattern with its slow implementation; delays rise, fall, jump and repeat."""
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


def every_pattern(k: int):
    """Yield all patterns of the toolkit, one whose codes stand in another order in two streams, and a user's own."""
    yield from (pattern for pattern, _ in patterns(k))
    halves = [i % 2 for i in range(k)]
    yield AffinePattern(stream_of=halves, start=[3 + (k - i) // 2 + 2 * (i % 2) for i in range(k)], stride=k // 2 + 1)
    yield OwnPattern(num_codebooks=k)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_frames_stand_where_the_contract_says(k):
    for pattern in every_pattern(k):
        check_frames(pattern, k)


def check_frames(pattern: Pattern, k: int) -> None:
    assert pattern.num_codebooks == k
    assert sorted(book for books in pattern.carries for book in books) == list(range(k))
    assert pattern.max_delay == max(pattern.first)
    table = pattern.codebooks(pattern.num_steps(6)).tolist()
    for stream, (books, first) in enumerate(zip(pattern.carries, pattern.first, strict=True)):
        assert set(table[stream][:first]) <= {-1} and table[stream][first] == books[0]
        for t in range(5):
            frame = table[stream][first + pattern.stride * t : pattern.end(stream, t + 1)]
            assert frame == table[stream][first : first + pattern.stride]
            assert tuple(book for book in frame if book >= 0) == books
    begin = pattern.num_steps(1)
    for step in range(begin, begin + 2 * pattern.stride):
        assert pattern.codebook_at(step) == pattern.codebook_at(step + pattern.stride)
    assert pattern.num_steps(0) == 0


@pytest.mark.parametrize("k", [2, 3, 7])
def test_interleave_keeps_to_the_table(k):
    codes = torch.arange(2 * k * 5).reshape(2, k, 5)
    for pattern in every_pattern(k):
        steps = pattern.interleave(codes, hole=-7)
        length = pattern.num_steps(5)
        assert steps.shape == (2, len(pattern.carries), length)
        ends = torch.tensor([pattern.end(stream, 5) for stream in range(len(pattern.carries))])
        coded = (pattern.codebooks(length) >= 0) & (torch.arange(length) < ends[:, None])
        assert torch.equal(steps != -7, coded.expand_as(steps))
        spoken = pattern.interleave(codes > 5, hole=False)
        assert spoken.dtype == torch.bool and torch.equal(pattern.deinterleave(spoken), codes > 5)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_tables_and_places_are_those_of_every_step(k):
    for pattern in every_pattern(k):
        for length in (0, 1, pattern.num_steps(1), pattern.num_steps(4) + 3):
            slow = torch.tensor([pattern.codebook_at(step) for step in range(length)], dtype=torch.long)
            assert torch.equal(pattern.codebooks(length), slow.reshape(length, len(pattern.carries)).T)
        for t in (0, 1, 5):
            codes = torch.arange(k * t).reshape(k, t)
            steps = np.full((len(pattern.carries), pattern.num_steps(t) + 2), -7)
            pattern.place(codes.numpy(), steps)
            assert steps[:, :-2].tolist() == pattern.interleave(codes[None], hole=-7)[0].tolist()
            assert (steps[:, -2:] == -7).all()


@pytest.mark.parametrize("k", [2, 3, 7])
def test_later_frames_are_read_like_the_first(k):
    """Steps of an answer after its first frames are read back as the later frames, at any number of steps."""
    codes = torch.arange(2 * k * 5).reshape(2, k, 5)
    for pattern in every_pattern(k):
        steps = pattern.interleave(codes)
        for gone in range(5):
            for length in range(steps.shape[-1] - pattern.stride * gone + 1):
                frames = pattern.deinterleave(steps[..., pattern.stride * gone :][..., :length])
                assert frames.shape[-1] == pattern.num_frames(length)
                assert torch.equal(frames, codes[..., gone : gone + frames.shape[-1]])


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
