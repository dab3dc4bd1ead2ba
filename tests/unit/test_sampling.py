"""Sampling against slow, obvious twins."""

from __future__ import annotations

import pytest
import torch

from omnikit.sampling import Sampling, sample

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, float("-inf")], [0.0, 3.0, 2.9, 2.8, -5.0]])


def seen(how: Sampling, row: int, draws: int = 400) -> set[int]:
    generator = torch.Generator().manual_seed(0)
    logits = LOGITS[row : row + 1].expand(draws, -1)
    return set(sample(logits, how, generator=generator).tolist())


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
    assert sample(LOGITS, Sampling()).tolist() == [0, 1]
    assert sample(LOGITS, Sampling(temperature=5.0, top_k=1)).tolist() == [0, 1]


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8, 0.95])
def test_top_p_keeps_the_smallest_set(row, p):
    assert seen(Sampling(temperature=1.0, top_p=p), row) == slow_top_p(row, p)


def test_top_k_and_forbidden_ids():
    assert seen(Sampling(temperature=1.0, top_k=2), 0) == {0, 1}
    assert 4 not in seen(Sampling(temperature=50.0), 0)


def test_frequencies_follow_the_temperature():
    generator = torch.Generator().manual_seed(0)
    drawn = sample(LOGITS[:1].expand(20000, -1), Sampling(temperature=2.0), generator=generator)
    share = torch.bincount(drawn, minlength=5) / 20000
    assert torch.allclose(share, (LOGITS[0] / 2).softmax(-1), atol=0.02)


def test_repetition_penalty():
    how = Sampling(repetition_penalty=4.0)
    assert sample(LOGITS, how, previous=torch.tensor([[0], [1]])).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("option", "value"), [("temperature", -1), ("top_k", 0), ("top_p", 0.0), ("repetition_penalty", 0)]
)
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=f"{option}: {value}"):
        Sampling(**{option: value})
