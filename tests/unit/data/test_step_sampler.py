"""Tests of the sampler that yields the micro-batches of each optimiser step to each process."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from omnikit.data.collate import STEPS, rounded
from omnikit.data.cut_batches import BatchCutter
from omnikit.data.deal_batches import deal_to_processes, deal_to_steps
from omnikit.data.label_cost import LabelCost, label_cost
from omnikit.data.sample_draws import SampleDraws
from omnikit.data.sample_table import SampleTable
from omnikit.data.step_plan import EffectiveBatch, more_batches
from omnikit.data.step_sampler import StepSampler
from omnikit.tasks import TASK_NAMES
from omnikit.torchrun import Share
from tests.unit.toy import toy_model

CELLS = ((0, "A1T1", 700), (0, "T1A1", 300), (1, "A1T1", 200), (2, "A1A2", 90))
"""Source, task and number of samples of each cell of the test table."""
SHARES = {"A1T1": 1.0, "T1A1": 2.0, "A1A2": 0.5}


def samples(cells=CELLS, longest: int = 150) -> SampleTable:
    rng, columns = np.random.default_rng(0), []
    for source, task, count in cells:
        lengths = rng.integers(10, longest + 1, count)
        text = np.zeros(count) if task == "T1A1" else lengths // 3
        audio = lengths // 2 if task in ("T1A1", "A1A2") else np.zeros(count)
        number = np.full(count, TASK_NAMES.index(task))
        columns.append(np.stack([np.full(count, source), np.arange(count), number, lengths, text, audio]))
    return SampleTable(*np.concatenate(columns, axis=1).astype(np.int32))


def sampler(table=None, *, rank=0, processes=1, tasks=None, weights=None, wanted=None, **options) -> StepSampler:
    draws = SampleDraws(samples() if table is None else table, tasks or SHARES, source_weights=weights, seed=7)
    options = {"max_batch_length": 800, "steps_per_epoch": 30, "label_cost": LabelCost(0.3, 0.1), **options}
    wanted = EffectiveBatch(sequences=32) if wanted is None else wanted
    return StepSampler(draws, wanted=wanted, share=Share(rank, processes), **options)


def by_step(batches) -> list[list[list[int]]]:
    """Return the micro-batches of one process as lists for each optimiser step."""
    steps, current = [], []
    for batch in batches:
        current.append(list(batch))
        if batch.ends_step:
            steps.append(current)
            current = []
    assert not current, "the last step does not end"
    return steps


def of_processes(processes: int, **options) -> list[list[list[list[int]]]]:
    return [by_step(sampler(rank=rank, processes=processes, **options)) for rank in range(processes)]


def flat(lists) -> list:
    return [each for one in lists for each in one]


def test_any_number_of_processes_gets_the_same_samples_per_step():
    wanted = EffectiveBatch(64)
    alone = by_step(sampler(wanted=wanted))
    assert len(alone) == 30 and all(50 <= len(flat(step)) <= 80 for step in alone)
    for processes in (2, 3, 4, 8):
        shares = of_processes(processes, wanted=wanted)
        for number, step in enumerate(zip(*shares, strict=True)):
            assert sorted(flat(flat(step))) == sorted(flat(alone[number])), processes
            assert len({len(batches) for batches in step}) == 1
            if processes != 3:
                assert sorted(flat(step)) == sorted(alone[number]), "the same micro-batches, too"


def test_no_two_processes_compute_the_same_draw():
    """The samples of a pool are drawn without repetition here, so that processes have none in common."""
    table = samples([(0, "A1T1", 5000)])
    for step in zip(*of_processes(3, table=table, tasks={"A1T1": 1.0}), strict=True):
        own = [set(flat(batches)) for batches in step]
        assert sum(map(len, own)) == len(set.union(*own))


@pytest.mark.parametrize("processes", [1, 3])
def test_a_run_goes_on_at_any_step(processes):
    options = {"rank": processes - 1, "processes": processes}
    whole = sampler(**options)
    epochs = []
    for epoch in (1, 2, 3):
        whole.set_epoch(epoch)
        epochs += by_step(whole)
    assert len(epochs) == 90 and epochs[:30] != epochs[30:60]
    for step in (0, 1, 17, 29, 30, 44, 89):
        resumed = sampler(**options)
        resumed.start_at(step)
        assert by_step(resumed) == epochs[step : 30 * (step // 30 + 1)], step
    resumed.set_epoch(2, taken=30)
    assert list(resumed) == [] and len(resumed) == 0


def test_tasks_have_exactly_their_share():
    found = sampler()
    drawn = np.concatenate(flat(flat(found.pool_steps(number) for number in range(5))))
    assert len(drawn) == 5 * found.plan.steps * 32
    tasks = np.bincount(found.pools.table.tasks[drawn], minlength=len(TASK_NAMES))
    for task, share in SHARES.items():
        assert abs(tasks[TASK_NAMES.index(task)] - len(drawn) * share / sum(SHARES.values())) < 2
    draws = SampleDraws(samples(), SHARES)
    counts = np.array([draws.counts(number) for number in range(500)])
    assert (np.diff(counts, axis=0) >= 0).all() and (counts.sum(axis=1) == np.arange(500)).all()
    assert np.abs(counts - np.arange(500)[:, None] * [cell.share for cell in draws.cells]).max() < 3


def test_sources_are_drawn_by_size_and_weight():
    for weights, expected in ((None, 200 / 900), ([1.0, 7.0, 1.0], 1400 / 2100)):
        draws = SampleDraws(samples(), {"A1T1": 1.0}, source_weights=weights)
        found = draws.table.sources[draws.between(0, 3000)]
        assert abs((found == 1).mean() - expected) < 0.001


def test_each_sample_comes_once_before_any_comes_twice():
    draws = SampleDraws(samples(), {"A1T1": 1.0}, seed=3)
    own = np.flatnonzero(draws.table.tasks == TASK_NAMES.index("A1T1"))
    first, second = draws.between(0, 900), draws.between(900, 1800)
    assert sorted(first) == sorted(second) == own.tolist()
    assert first.tolist() != second.tolist()
    parts = [draws.between(start, start + 100) for start in range(0, 900, 100)]
    assert sorted(np.concatenate(parts)) == own.tolist()
    assert sorted(draws.between(250, 260)) == sorted(SampleDraws(draws.table, {"A1T1": 1.0}, seed=3).between(250, 260))
    assert all(len(cell.passes) <= 2 for cell in draws.cells)
    assert SampleDraws(draws.table, {"A1T1": 1.0}, seed=4).between(0, 900).tolist() != first.tolist()


def test_step_labels_are_those_of_all_processes():
    table = samples()
    shares = [list(sampler(rank=rank, processes=3)) for rank in range(3)]
    step = [[] for _ in range(3)]
    for batches in zip(*shares, strict=True):
        for own, batch in zip(step, batches, strict=True):
            own.append(batch)
        if batches[0].ends_step:
            at = np.array(flat(flat(step)))
            for task in range(len(TASK_NAMES)):
                of_task = at[table.tasks[at] == task]
                expected = [table.text_labels[of_task].sum(), table.audio_labels[of_task].sum()]
                assert all(batch.step_labels[task].tolist() == expected for batch in flat(step))
            step = [[] for _ in range(3)]


@pytest.mark.parametrize(
    ("wanted", "processes"),
    [(EffectiveBatch(32), 1), (EffectiveBatch(33), 2), (EffectiveBatch(5), 5), (EffectiveBatch(), 3),
     (EffectiveBatch(accumulated=2), 2), (EffectiveBatch(labels=1500), 3)],
)  # fmt: skip
def test_no_micro_batch_is_empty_or_too_long(wanted, processes):
    table = samples(longest=200)
    for max_batch_length in (400, 1000):
        for rank in range(processes):
            options = {"wanted": wanted, "max_batch_length": max_batch_length}
            for batch in sampler(table, rank=rank, processes=processes, **options):
                assert len(batch) * int(rounded(table.lengths[batch].max(), STEPS)) <= max_batch_length


def test_full_micro_batches_are_full_and_as_many_as_wanted():
    for wanted, accumulated in ((EffectiveBatch(), 1), (EffectiveBatch(accumulated=3), 3)):
        found = sampler(wanted=wanted, processes=2)
        steps = by_step(found)
        assert [len(step) for step in steps] == [accumulated] * 30
        assert found.micro_batches == accumulated and len(found) == 30 * accumulated
        lengths = found.pools.table.lengths
        assert sum(lengths[flat(step)].sum() for step in steps) > 0.8 * 30 * accumulated * 800


def test_steps_have_the_labels_that_are_wanted():
    found = sampler(wanted=EffectiveBatch(labels=2000), steps_per_epoch=100)
    table = found.pools.table
    sums = [sum(table.text_labels[b].sum() + table.audio_labels[b].sum() for b in step) for step in by_step(found)]
    assert abs(np.mean(sums) / 2000 - 1) < 0.02
    assert 0.9 < min(sums) / 2000 < max(sums) / 2000 < 1.1


def test_padding_and_costs_of_processes_are_small():
    table = samples([(0, "A1T1", 20000), (0, "T1A1", 5000)], longest=700)
    found = sampler(table, tasks={"A1T1": 1, "T1A1": 1}, wanted=EffectiveBatch(192), max_batch_length=8000, processes=8)
    assert found.plan.steps == 24 and found.plan.micro_batches == 16
    padded = filled = most = mean = 0
    for step in found.pool_steps(0):
        costs = found.pools.costs(step)
        own = [costs[items].sum() for items in deal_to_processes(costs, 8)]
        most, mean = most + max(own), mean + sum(own) / 8
        padded += sum(len(piece) * found.pools.padded_lengths(piece).max() for piece in step)
        filled += sum(table.lengths[piece].sum() for piece in step)
    assert filled / padded > 0.98
    assert most / mean < 1.02


def test_four_recordings_and_one_step_are_enough():
    table = samples([(0, "A1T1", 4)])
    for wanted in (EffectiveBatch(), EffectiveBatch(192), EffectiveBatch(1), EffectiveBatch(labels=100)):
        found = sampler(table, tasks={"A1T1": 1.0}, wanted=wanted, steps_per_epoch=1)
        (step,) = by_step(found)
        assert set(flat(step)) <= set(range(4))
    assert len(set(flat(by_step(sampler(table, tasks={"A1T1": 1.0}, wanted=EffectiveBatch(4)))[0]))) == 4


@pytest.mark.parametrize("processes", [1, 2, 5, 9])
def test_validation_covers_each_sample_once(processes):
    lengths = [5, 80, 7, 150, 9, 9, 9, 900, *range(100, 400, 7)]
    shares = [sampler().cover(lengths, Share(rank, processes)) for rank in range(processes)]
    assert sorted(flat(flat(shares))) == list(range(len(lengths)))
    assert all(shares)
    for batch in flat(shares):
        assert len(batch) == 1 or len(batch) * rounded(max(lengths[i] for i in batch), STEPS) <= 800
    assert sampler().cover([]) == []


def test_wrong_data_and_sizes_are_refused():
    with pytest.raises(ValueError, match="no sample of the data serves T1A2; it serves A1A2, A1T1, T1A1"):
        sampler(tasks={"T1A2": 1.0})
    with pytest.raises(ValueError, match="max_batch_length: 30; the longest sample has 150 steps, 152 with padding"):
        sampler(max_batch_length=30)
    with pytest.raises(ValueError, match="effective_batch_size: a step has 4 sequences, fewer than the 8 processes"):
        sampler(wanted=EffectiveBatch(4), processes=8)
    with pytest.raises(ValueError, match="effective_batch_labels: a step has 1 sequences, fewer than the 8 processes"):
        sampler(wanted=EffectiveBatch(labels=50), processes=8)
    with pytest.raises(ValueError, match="max_batch_length: 160; must hold two samples of 150 steps"):
        sampler(wanted=EffectiveBatch(10), processes=3, max_batch_length=160)


def test_the_log_names_batch_padding_and_sources():
    said = sampler(processes=2).described({0: "libri", 1: "mls", 2: "qa"})
    assert said.startswith("effective batch: 32 sequences in 4 batches on 2 processes; ")
    assert "T1A1 57.1% (libri 57.1%)" in said and "A1T1 28.6% (libri 22.2%, mls 6.3%)" in said
    assert "padding" in said and "\n" not in said


def test_cuts_are_like_those_of_a_slow_search():
    rng = np.random.default_rng(1)
    for number in range(40):
        lengths = np.sort(rng.integers(1, 20, rng.integers(1, 40))) * STEPS
        costs, longest = rng.random(len(lengths)) * 30, 160 + 80 * (number % 4)
        cutter = BatchCutter(lengths, costs, longest)
        full, start = [], 0
        for end in range(1, len(lengths) + 1):
            if end == len(lengths) or (end + 1 - start) * lengths[end] > longest:
                full.append((start, end))
                start = end
        assert cutter.fill() == full
        for count in range(1, len(lengths) + 2):
            found = cutter.cut(count)
            assert (found is None) == (count < len(full) or count > len(lengths))
            if found is not None:
                assert len(found) == count and found[0][0] == 0 and found[-1][1] == len(lengths)
                assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
                assert all(start < end and (end - start) * lengths[end - 1] <= longest for start, end in found)


def test_dealing_balances_sizes_then_costs():
    rng = np.random.default_rng(2)
    costs, sizes = rng.uniform(90, 110, 96), rng.integers(3, 9, 96)
    dealt = deal_to_steps(costs, sizes, 12)
    assert sorted(np.concatenate(dealt)) == list(range(96)) and {len(each) for each in dealt} == {8}
    sums = [sizes[each].sum() for each in dealt]
    assert max(sums) - min(sums) <= 2
    unsorted = np.mean([max(costs[i::12]) / np.mean(costs[i::12]) for i in range(12)])
    assert np.mean([max(costs[each]) / np.mean(costs[each]) for each in dealt]) < 1 + (unsorted - 1) / 2
    shares = deal_to_processes(costs, 8)
    assert sorted(flat(shares)) == list(range(96))
    sums = [costs[each].sum() for each in shares]
    assert max(sums) / np.mean(sums) < 1.002


def test_numbers_of_micro_batches_are_shared_by_1_2_4_and_8_processes():
    assert [more_batches(n) for n in (1, 2, 3, 5, 8, 9, 16, 17)] == [1, 2, 4, 8, 8, 16, 16, 24]


def test_labels_cost_what_their_head_has_in_weights():
    model = toy_model(tts_blocks=2)
    found, width = label_cost(model), model.llm.dim
    blocks = sum(p.numel() for name, p in model.llm.named_parameters() if "embed" not in name and "head" not in name)
    blocks += sum(p.numel() for p in model.tts_adapter.parameters())
    assert found.text == pytest.approx(model.layout.sizes[0] * width / blocks)
    assert found.audio == pytest.approx(sum(model.layout.sizes[1:]) * width / blocks)
