"""Test sampling of token ids against slow, obvious implementations."""

from __future__ import annotations

import pytest
import torch

from omnikit.counter_rng import GOLDEN, gumbel, hash32
from omnikit.sampling import Sampling, noise_keys, sample, sampling_numbers

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, float("-inf")], [0.0, 3.0, 2.9, 2.8, -5.0]])


def choose(logits: torch.Tensor, how: Sampling, **options) -> list[int]:
    """Return one sampled token id for each row of logits [B, V], all with the same sampling options."""
    return sample(logits, torch.tensor([sampling_numbers(how)] * len(logits)), cut=how.cuts, **options).tolist()


def draws(logits: torch.Tensor, how: Sampling, count: int) -> list[int]:
    """Return `count` token ids sampled from logits [V], each with the noise of another step."""
    zeros = torch.zeros(count, dtype=torch.long)
    keys = noise_keys(zeros + 7, torch.arange(count), zeros[:1])[:, 0]
    return choose(logits.expand(count, -1), how, keys=keys)


def seen(how: Sampling, row: int, count: int = 400) -> set[int]:
    return set(draws(LOGITS[row], how, count))


def slow_top_p(row: int, p: float) -> set[int]:
    probabilities = LOGITS[row].softmax(-1).tolist()
    kept, mass = set(), 0.0
    for i in sorted(range(5), key=lambda i: -probabilities[i]):
        if mass >= p:
            break
        kept.add(i)
        mass += probabilities[i]
    return kept


def test_greedy():
    keys = torch.tensor([5, 6])
    assert choose(LOGITS, Sampling(), keys=keys) == choose(LOGITS, Sampling()) == [0, 1]
    assert choose(LOGITS, Sampling(temperature=5.0, top_k=1), keys=keys) == [0, 1]


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8, 0.95])
def test_top_p_keeps_the_smallest_set(row, p):
    assert seen(Sampling(temperature=1.0, top_p=p), row) == slow_top_p(row, p)


def test_top_k_and_forbidden_ids():
    assert seen(Sampling(temperature=1.0, top_k=2), 0) == {0, 1}
    assert 4 not in seen(Sampling(temperature=50.0), 0)


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_frequencies_follow_the_temperature(temperature):
    """Sampled token ids have the frequencies that logits and temperature give, within four standard deviations."""
    count, expected = 40000, (LOGITS[0] / temperature).softmax(-1)
    drawn = torch.tensor(draws(LOGITS[0], Sampling(temperature=temperature), count))
    share = torch.bincount(drawn, minlength=5) / count
    assert ((share - expected).abs() <= 4 * (expected * (1 - expected) / count).sqrt()).all()


def test_repetition_penalty():
    emitted = torch.zeros(2, 5, dtype=torch.bool)
    emitted[0, 0] = emitted[1, 1] = True
    assert choose(LOGITS, Sampling(repetition_penalty=4.0), seen=emitted) == [1, 2]
    assert choose(LOGITS, Sampling(), seen=emitted) == [0, 1]


def test_a_row_does_not_depend_on_its_neighbours():
    """Sequences with different sampling options are sampled in one batch [R, S, V] as each alone, for several streams.
    """
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 3, 11, generator=random)
    ways = [Sampling(), Sampling(1.0), Sampling(0.5, top_k=3), Sampling(2.0, top_p=0.6), Sampling(1.0, 4, 0.5, 1.3),
            Sampling(repetition_penalty=2.0)]  # fmt: skip
    emitted = torch.rand(6, 3, 11, generator=random) < 0.3
    keys = noise_keys(torch.arange(6), torch.arange(6) * 3, torch.arange(3))
    numbers = torch.tensor([sampling_numbers(how) for how in ways])
    together = sample(logits, numbers, keys=keys, seen=emitted, cut=True)
    for row, how in enumerate(ways):
        one = slice(row, row + 1)
        for stream in range(3):
            alone = sample(
                logits[one, stream], numbers[one], keys=keys[one, stream] if how.draws else None,
                seen=emitted[one, stream] if how.penalises else None, cut=how.cuts,
            )  # fmt: skip
            assert together[row, stream] == alone[0]


def test_noise_of_seeds_steps_and_streams_differs():
    keys = noise_keys(torch.arange(20).repeat_interleave(20), torch.arange(20).repeat(20), torch.arange(8))
    assert len(keys.flatten().unique()) == keys.numel()
    noise = gumbel(hash32(keys[..., None] + torch.arange(64) * GOLDEN)).double()
    assert torch.isfinite(noise).all()
    assert abs(noise.mean() - 0.5772) < 0.01 and abs(noise.std() - 1.2825) < 0.01
    rows = noise.flatten(0, 1)
    correlation = torch.corrcoef(rows[:400])
    assert (correlation - torch.eye(400)).abs().max() < 0.7  # of 64 values each


@pytest.mark.parametrize(
    ("option", "value"), [("temperature", -1), ("top_k", 0), ("top_p", 0.0), ("repetition_penalty", 0)]
)
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=f"{option}: {value}"):
        Sampling(**{option: value})
