"""Test the training objective against slow, obvious computations: chunked or recomputed logits, weights of labels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from omnikit.linear_cross_entropy import MULTIPLE
from omnikit.losses import StreamLabels, StreamLosses, cross_entropy, label_weights, stream_losses
from omnikit.model import Hidden, OmniLM
from omnikit.tasks import TASK_NAMES
from omnikit.tokens import IGNORE
from tests.unit.toy import toy_model

BATCH, LENGTH, TASKS = 4, 40, len(TASK_NAMES)
SMALL = 4 * 100 * MULTIPLE
"""Size of a logits chunk in bytes, so small that a test batch is divided into several chunks."""


def drawn_labels(model: OmniLM, masks: str, seed: int) -> Tensor:
    """Return random labels [B, S, L] with masks: at random, an empty stream, an empty group of streams, or all."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.stack([torch.randint(n, (BATCH, LENGTH), generator=draw) for n in model.layout.sizes], dim=1)
    labels[torch.rand(labels.shape, generator=draw) < 0.4] = IGNORE
    empty = {"random": [], "stream": [2], "text": [0], "audio": [1, 2, 3], "all": [0, 1, 2, 3]}[masks]
    labels[:, empty] = IGNORE
    return labels


def z_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels) + 0.1 * logits.logsumexp(dim=-1).square()


def recomputed(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the default loss as a function of its own, which is computed by recomputing logits."""
    return cross_entropy(logits, labels)


def plain(model: OmniLM, hidden: Hidden, labels: Tensor, tasks: Tensor, weights: Tensor, token_loss) -> Tensor:
    """Compute the weighted sum of the losses label by label, from the logits of all positions at once."""
    logits = [model.text_logits(hidden.text), *model.audio_logits(hidden.audio)]
    total = torch.zeros(())
    for s, one in enumerate(logits):
        for b in range(BATCH):
            at = labels[b, s] != IGNORE
            total = total + weights[tasks[b], s] * token_loss(one[b][at], labels[b, s][at]).sum()
    return total


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("masks", ["random", "stream", "text", "audio", "all"])
@pytest.mark.parametrize(("ours", "theirs"), [(cross_entropy,) * 2, (recomputed, cross_entropy), (z_loss,) * 2])
def test_loss_and_gradients_are_those_of_all_logits_at_once(ours, theirs, masks, seed):
    model = toy_model(tts_blocks=1)
    labels, tasks = drawn_labels(model, masks, seed), torch.tensor([0, 3, 4, 3])
    weights = torch.rand(TASKS, model.layout.num_streams, generator=torch.Generator().manual_seed(seed)) / 20
    states = [torch.randn(BATCH, LENGTH, model.llm.dim, requires_grad=True) for _ in range(2)]
    hidden = Hidden(*states)
    total, losses = stream_losses(model, hidden, StreamLabels.of(labels, tasks), weights, ours, chunk_bytes=SMALL)
    wanted = plain(model, hidden, labels, tasks, weights, theirs)
    heads = [model.llm.lm_head.weight, model.new_text_embeddings.head.weight, model.new_audio_embeddings.head.weight]
    given = [*states, *heads]
    assert torch.allclose(total, wanted, rtol=1e-5, atol=1e-5)
    if masks != "all":
        found = torch.autograd.grad(total, given, allow_unused=True)
        for one, two in zip(found, torch.autograd.grad(wanted, given), strict=True):
            assert not two.any() if one is None else torch.allclose(one, two, rtol=1e-5, atol=1e-5)
    else:
        assert not total.requires_grad
    known = labels != IGNORE
    for task in range(TASKS):
        assert torch.equal(losses.counts[task], known[tasks == task].sum(dim=(0, 2)))
    assert not losses.sums[losses.counts == 0].any() and not losses.sums.requires_grad
    assert torch.allclose((losses.sums * weights).sum(), total, rtol=1e-4)


@pytest.mark.parametrize("token_loss", [cross_entropy, recomputed])
@pytest.mark.parametrize(("masks", "unused"), [("text", {0, 1}), ("audio", {2}), ("all", {0, 1, 2})])
def test_a_head_without_labels_gets_no_gradient(token_loss, masks, unused):
    """A head without labels gets none, instead of zeros to which an optimiser would apply weight decay."""
    model = toy_model()
    heads = [model.llm.lm_head.weight, model.new_text_embeddings.head.weight, model.new_audio_embeddings.head.weight]
    states = torch.randn(BATCH, LENGTH, model.llm.dim, requires_grad=True)
    found = StreamLabels.of(drawn_labels(model, masks, 0))
    total, _ = stream_losses(model, Hidden(states, states), found, torch.ones(TASKS, 4), token_loss)
    if total.requires_grad:
        total.backward()
    assert {i for i, head in enumerate(heads) if head.grad is None} == unused


def test_a_backbone_without_a_linear_head_has_the_same_loss(monkeypatch):
    model = toy_model()
    hidden = model(torch.zeros(BATCH, 4, LENGTH, dtype=torch.long))
    found, weights = StreamLabels.of(drawn_labels(model, "random", 0)), torch.ones(1, 4)
    expected = stream_losses(model, hidden, found, weights)
    monkeypatch.setattr(type(model.llm), "linear_head", lambda llm: None)
    for one, two in zip(expected, stream_losses(model, hidden, found, weights), strict=True):
        torch.testing.assert_close(one, two)


COUNTS = torch.tensor([[10, 0, 0], [5, 20, 20], [0, 0, 0], [0, 40, 0]])
STREAMS = torch.tensor([2.0, 1.0, 0.5])


def test_weights_of_labels_make_the_mean_over_streams_of_the_means_over_labels():
    means = torch.tensor([[1.0, 2.0, 3.0]]).expand(4, 3)
    weights = label_weights(COUNTS, STREAMS)
    assert float((weights * COUNTS * means).sum()) == pytest.approx((2 * 1 + 1 * 2 + 0.5 * 3) / 3.5)
    assert torch.equal(weights, weights[:1].expand(4, 3))  # whatever the task
    assert label_weights(COUNTS[:1], STREAMS)[0].tolist() == pytest.approx([0.1, 0, 0])  # only streams with labels
    assert not label_weights(torch.zeros(4, 3, dtype=torch.long), STREAMS).any()


def test_weights_of_labels_make_the_mean_over_tasks_by_their_shares():
    shares = torch.tensor([0.2, 0.5, 0.3, 0.1])
    means = torch.tensor([[1.0, 9.0, 9.0], [4.0, 5.0, 6.0], [9.0, 9.0, 9.0], [9.0, 3.0, 9.0]])
    weights = label_weights(COUNTS, STREAMS, shares)
    by_task = torch.tensor([1.0, (2 * 4 + 1 * 5 + 0.5 * 6) / 3.5, 0.0, 3.0])  # the third has no labels in this step
    assert float((weights * COUNTS * means).sum()) == pytest.approx(float((shares * by_task).sum()) / 0.8)
    assert not label_weights(torch.zeros_like(COUNTS), STREAMS, shares).any()
    assert float((label_weights(COUNTS, torch.tensor([0.0, 1, 1]), shares) * COUNTS).sum()) == pytest.approx(1)


@pytest.mark.parametrize("shares", [None, torch.tensor([0.2, 0.5, 0.3, 0.1])])
def test_the_parts_of_a_step_add_up_to_its_objective(shares):
    """The losses of any division of a step's labels into batches, weighted by label, add up to the objective."""
    draw = torch.Generator().manual_seed(0)
    batches = [
        StreamLosses(torch.rand(4, 3, generator=draw), torch.randint(1, 9, (4, 3), generator=draw)) for _ in range(3)
    ]
    whole = StreamLosses(sum(one.sums for one in batches), sum(one.counts for one in batches))
    weights = label_weights(whole.counts, STREAMS, shares)
    assert float(sum((one.sums * weights).sum() for one in batches)) == pytest.approx(
        float(whole.objective(STREAMS, shares))
    )


def test_label_smoothing_is_that_of_torch():
    logits, labels = torch.randn(5, 7), torch.tensor([0, 3, IGNORE, 6, 1])
    expected = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum", label_smoothing=0.1)
    assert torch.allclose(cross_entropy(logits, labels, label_smoothing=0.1).sum(), expected)
