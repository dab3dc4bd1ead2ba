"""Tests of packing samples into rows, and of the micro-batches that are cut for packed rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omnikit.data.collate import STEPS, Batch, collate, rounded
from omnikit.data.cut_batches import BatchCutter
from omnikit.data.micro_batch import MicroBatch
from omnikit.data.packed_rows import fill_rows, most_steps, pack_rows
from omnikit.data.step_plan import EffectiveBatch
from omnikit.model import PackedRows
from omnikit.tokens import IGNORE
from tests.unit.data.test_step_sampler import by_step, flat, sampler
from tests.unit.toy import toy_model
from tests.unit.train.objective_runs import material


def drawn(seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return rng.integers(1, [20, 100, 400][seed % 3], rng.integers(1, 60)).tolist()


@pytest.mark.parametrize("seed", range(30))
def test_each_sample_is_in_one_row_with_room_for_it(seed):
    lengths = drawn(seed)
    longest = rounded(max(lengths), STEPS)
    rows = fill_rows(lengths, longest)
    assert sorted(flat(rows)) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= longest for row in rows)
    padded = len(rows) * longest
    assert sum(lengths) <= padded <= most_steps(len(lengths), sum(lengths), longest)
    best, length = pack_rows(lengths, STEPS)
    assert length >= longest and length % STEPS == 0 and best == fill_rows(lengths, length)
    assert len(best) * length <= padded


def test_rows_are_longer_than_the_longest_sample_where_that_saves_padding():
    assert pack_rows([48, 25, 25, 25], STEPS) == ([[0, 1, 2, 3]], 144)
    assert pack_rows([1000] * 8, STEPS)[1] == 1000
    assert pack_rows([8] * 8, STEPS) == ([[i] for i in range(8)], 8)


def test_a_row_takes_the_longest_samples_that_fit():
    assert fill_rows([3, 10, 4, 7, 3, 9], 10) == [[1], [5], [3, 0], [2, 4]]


def batch_of(packed: bool, order=None) -> tuple[list, Batch]:
    model = toy_model()
    samples, features = material(model)
    order = list(range(len(samples))) if order is None else order
    samples, features = [samples[i] for i in order], [features[i] for i in order]
    step = MicroBatch(packed=packed)
    return samples, collate(samples, features, model.layout, model.encoder.dim, step=step)


def test_a_packed_batch_holds_the_samples_and_their_labels():
    samples, batch = batch_of(packed=True)
    _, plain = batch_of(packed=False)
    assert isinstance(batch.packed, PackedRows) and plain.packed is None
    assert len(batch.steps) < len(plain.steps) == len(samples) == len(batch.features)
    assert batch.sizes.padded == batch.steps[:, 0].numel() < plain.sizes.padded
    assert batch.sizes._replace(padded=plain.sizes.padded) == plain.sizes
    assert torch.equal(batch.features, plain.features) and torch.equal(batch.step_labels, plain.step_labels)
    for number, sample in enumerate(samples):
        row, columns = (batch.packed.sequences == number).nonzero().unbind(1)
        assert len(set(row.tolist())) == 1 and len(columns) == sample.length
        assert torch.equal(batch.packed.positions[row, columns], torch.arange(sample.length))
        assert torch.equal(batch.steps[row[0]][:, columns], sample.steps)
        assert torch.equal(batch.labels[row[0]][:, columns], sample.labels)
    padding = batch.packed.sequences == -1
    assert int((~padding).sum()) == batch.sizes.positions
    assert (batch.labels.transpose(1, 2)[padding] == IGNORE).all()
    pads = toy_model().layout.pads()
    assert (batch.steps.transpose(1, 2)[padding] == pads).all()


def test_packed_rows_are_moved_with_the_batch():
    moved = batch_of(packed=True)[1].to("meta")
    assert moved.packed.positions.device.type == moved.packed.sequences.device.type == "meta"


def test_micro_batches_for_packed_rows_keep_to_their_maximum():
    for seed in range(30):
        lengths = rounded(np.sort(drawn(seed)), STEPS)
        longest = int(lengths[-1]) * (1 + seed % 4)
        cutter = BatchCutter(lengths, np.zeros(len(lengths)), longest, packed=True)
        found, plain = cutter.fill(), BatchCutter(lengths, np.zeros(len(lengths)), longest).fill()
        assert flat([range(*piece) for piece in found]) == list(range(len(lengths)))
        assert len(found) <= len(plain)
        for start, end in found:
            piece = lengths[start:end]
            assert len(fill_rows(piece.tolist(), int(piece[-1]))) * piece[-1] <= longest
        for count in range(len(found), len(lengths) + 1):
            assert all(cutter.steps(start, end) <= longest for start, end in cutter.cut(count))


@pytest.mark.parametrize("wanted", [EffectiveBatch(), EffectiveBatch(32)], ids=["full", "sequences"])
def test_the_sampler_marks_its_micro_batches(wanted):
    options = {"wanted": wanted, "steps_per_epoch": 4}
    packed, plain = sampler(packed=True, **options), sampler(**options)
    lengths = packed.pools.table.lengths
    for batch in packed:
        assert batch.packed and batch.with_samples([1]).packed
        longest = rounded(int(lengths[batch].max()), STEPS)
        assert len(fill_rows(lengths[batch].tolist(), longest)) * longest <= 800
    assert not any(batch.packed for batch in plain)
    assert len(flat(by_step(packed))) == 4 * packed.micro_batches
    assert "padding" in packed.described({})
