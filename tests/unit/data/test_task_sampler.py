"""Tests of the batch sampler that mixes the samples of several tasks by weight."""

from __future__ import annotations

from collections import Counter

import pytest
from speechbrain.dataio.sampler import DistributedSamplerWrapper

from omnikit.data.collate import STEPS, rounded
from omnikit.data.task_sampler import TaskSampler

TASKS = ["A1T1"] * 500 + ["T1A1"] * 20 + ["A1A2"] * 3
LENGTHS = [10 + i % 37 for i in range(len(TASKS))]


def task_sampler(**options) -> TaskSampler:
    weights = {"A1T1": 1.0, "T1A1": 2.0, "A1A2": 0.0}
    return TaskSampler(TASKS, LENGTHS, **{"weights": weights, "max_batch_length": 200, "batches": 60, **options})


def test_tasks_come_as_often_as_their_weight_however_many_samples_they_have():
    drawn = Counter(TASKS[i] for batch in task_sampler(batches=600) for i in batch)
    assert drawn["A1A2"] == 0
    assert 1.8 < drawn["T1A1"] / drawn["A1T1"] < 2.2


def test_batches_hold_no_more_than_they_may():
    for batch in task_sampler():
        assert len(batch) * max(LENGTHS[i] for i in batch) <= 200


def test_batches_have_few_shapes():
    """Most batches hold as many padded samples as fit; only the last batch of a pool of samples may hold fewer."""
    sampler = task_sampler(batches=600)
    shapes = Counter((len(batch), rounded(max(LENGTHS[i] for i in batch), STEPS)) for batch in sampler)
    assert all(count * steps <= 200 for count, steps in shapes)
    full = sum(number for (count, steps), number in shapes.items() if count == 200 // steps)
    assert full > 0.7 * shapes.total()


def test_an_epoch_is_the_same_every_time_and_others_differ():
    sampler = task_sampler()
    first = list(sampler)
    assert list(sampler) == first
    assert len(first) == len(sampler) == 60
    sampler.set_epoch(2)
    assert list(sampler) != first


def test_cover_holds_each_sample_once():
    lengths = [5, 80, 7, 150, 9, 9, 9]
    covered = task_sampler().cover(lengths)
    assert sorted(i for batch in covered for i in batch) == list(range(7))


def test_wrong_mixes_are_refused():
    with pytest.raises(ValueError, match="no sample of the data serves T1A2; it serves A1A2, A1T1, T1A1"):
        task_sampler(weights={"T1A2": 1.0})
    with pytest.raises(ValueError, match="max_batch_length: 30; the longest sample has 46 steps"):
        task_sampler(max_batch_length=30)


def test_sequences_of_a_batch_are_known_beforehand():
    sampler = task_sampler(batches=960)
    assert sampler.sequences_per_batch() == pytest.approx(sum(map(len, sampler)) / 960, rel=0.1)


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_share_an_epoch_out(processes):
    """With SpeechBrain's distributed wrapper, each batch of an epoch goes to exactly one process."""
    epochs = []
    for epoch in (1, 2):
        shares = []
        for rank in range(processes):
            sampler = task_sampler(batches=48)
            wrapper = DistributedSamplerWrapper(sampler, num_replicas=processes, rank=rank, shuffle=True)
            wrapper.set_epoch(epoch)
            shares.append(list(wrapper))
        assert {len(share) for share in shares} == {48 // processes}
        assert sorted(batch for share in shares for batch in share) == sorted(sampler)
        epochs.append(shares)
    assert epochs[0] != epochs[1]
