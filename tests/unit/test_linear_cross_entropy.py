"""Test chunked cross-entropy against the plain one: equal loss and gradients, without all logits in memory."""

from __future__ import annotations

import os
import socket

import pytest
import torch
from torch import Tensor, nn

from benchmarks.train_step import peak_bytes
from omnikit.label_positions import MULTIPLE, label_positions
from omnikit.linear_cross_entropy import ChunkedLoss, Head, linear_cross_entropy
from omnikit.tokens import IGNORE

BATCH, LENGTH, WIDTH = 3, 50, 16
SMALL = MULTIPLE * 4 * 30
"""Size of a logits chunk in bytes, so small that a test batch is divided into several chunks."""


def drawn_labels(sizes: tuple[int, ...], masks: str, seed: int) -> Tensor:
    """Return random labels [B, s, L], some of which are masked: at random, a whole stream, or all."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.stack([torch.randint(size, (BATCH, LENGTH), generator=draw) for size in sizes], dim=1)
    labels[torch.rand(labels.shape, generator=draw) < 0.4] = IGNORE
    if masks == "empty stream":
        labels[:, 0] = IGNORE
    if masks == "nothing":
        labels[:] = IGNORE
    return labels


def drawn_heads(rows: tuple[int, ...], *, bias: bool, finish: bool = False) -> list[Head]:
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, size, bias=bias) for size in rows]
    return [Head(one.weight, one.bias, _bounded if finish and not i else None) for i, one in enumerate(layers)]


def _bounded(logits: Tensor) -> Tensor:
    return 0.5 * torch.tanh(logits / 0.5)


def plain_loss(
    hidden: Tensor, heads: list[Head], labels: Tensor, weights: Tensor, sizes: tuple[int, ...]
) -> ChunkedLoss:
    """Compute the cross-entropy loss from the logits of all positions at once, the slow and obvious way."""
    logits = []
    for weight, bias, finish in heads:
        one = nn.functional.linear(hidden, weight, bias)
        logits.append(one if finish is None else finish(one))
    streams = torch.cat(logits, dim=-1).float().split(list(sizes), dim=-1)
    options = {"ignore_index": IGNORE, "reduction": "none"}
    wanted = labels.transpose(1, 2).flatten(0, 1).unbind(1)
    losses = [nn.functional.cross_entropy(one, two, **options) for one, two in zip(streams, wanted, strict=True)]
    losses = torch.stack(losses, dim=1)
    return ChunkedLoss((losses * weights).sum(), losses.detach())


def both(
    labels: Tensor, heads: list[Head], sizes: tuple[int, ...], factor: float = 0.7, **options
) -> list[list[Tensor | None]]:
    """Return total, sum of losses per stream, and all gradients, as chunked and as plain cross-entropy compute them.

    The labels of a position have weights of their own.
    """
    found = label_positions(labels)
    weights = torch.linspace(0.5, 2.0, BATCH * LENGTH * len(sizes)).unflatten(0, (-1, len(sizes)))
    start, results = torch.randn(BATCH * LENGTH, WIDTH, generator=torch.Generator().manual_seed(5)), []
    for chunked in (True, False):
        hidden = start.clone().requires_grad_()
        parameters = [p for head in heads for p in (head.weight, head.bias) if p is not None]
        for parameter in parameters:
            parameter.grad = None
        if chunked:
            loss = linear_cross_entropy(
                hidden, heads, found.positions, found.labels,
                weights=weights[found.positions], sizes=sizes, chunk_bytes=SMALL, **options,
            )  # fmt: skip
        else:
            loss = plain_loss(hidden, heads, labels, weights, sizes)
        if loss.total.requires_grad:
            (factor * loss.total).backward()
        gradients = [None if each.grad is None else each.grad.clone() for each in (hidden, *parameters)]
        results.append([loss.total.detach(), loss.losses.sum(dim=0), *gradients])
    return results


def assert_close(results: list[list[Tensor | None]], tolerance: float = 1e-5) -> None:
    for ours, theirs in zip(*results, strict=True):
        if ours is None:
            assert theirs is None or not theirs.any()
        else:
            assert ours.dtype == theirs.dtype
            assert (ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("masks", ["random", "empty stream"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "sizes"), [((30, 4), (34,)), ((33,), (11, 11, 11)), ((20, 13), (7, 11, 15))])
def test_loss_and_gradients_are_those_of_the_plain_computation(rows, sizes, bias, masks, seed):
    assert_close(both(drawn_labels(sizes, masks, seed), drawn_heads(rows, bias=bias), sizes))


@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1)])
def test_frozen_heads_get_no_gradient(frozen):
    heads = drawn_heads((30, 4), bias=True)
    for number in frozen:
        heads[number].weight.requires_grad_(False)
        heads[number].bias.requires_grad_(False)
    results = both(drawn_labels((34,), "random", 0), heads, (34,))
    assert_close(results)
    assert [each is None for each in results[0][3::2]] == [number in frozen for number in range(2)]


def test_logits_that_a_function_finishes():
    heads = drawn_heads((30, 4), bias=False, finish=True)
    assert_close(both(drawn_labels((34,), "random", 0), heads, (34,)))


def test_no_label_gives_a_zero_without_gradient():
    heads = drawn_heads((30, 4), bias=False)
    found = label_positions(drawn_labels((34,), "nothing", 0))
    assert len(found.positions) == 0
    hidden = torch.randn(BATCH * LENGTH, WIDTH, requires_grad=True)
    loss = linear_cross_entropy(hidden, heads, found.positions, found.labels, weights=torch.ones(1), sizes=(34,))
    assert not loss.total.requires_grad and float(loss.total) == 0 and loss.losses.shape == (0, 1)


def test_without_gradients_the_loss_is_the_same():
    heads, labels = drawn_heads((33,), bias=False), drawn_labels((11, 11, 11), "random", 1)
    found, hidden, weights = label_positions(labels), torch.randn(BATCH * LENGTH, WIDTH), torch.ones(3)
    options = {"weights": weights, "sizes": (11, 11, 11), "chunk_bytes": SMALL}
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, heads, found.positions, found.labels, **options)
    assert not loss.total.requires_grad
    expected = plain_loss(hidden, heads, labels, weights, (11, 11, 11)).losses
    assert torch.allclose(loss.losses.sum(dim=0), expected.sum(dim=0), rtol=1e-5)


@pytest.mark.parametrize(("rows", "sizes"), [((30, 4), (34,)), ((33,), (11, 11, 11))])
def test_bfloat16_autocast_rounds_as_the_plain_computation_does(rows, sizes):
    labels, heads = drawn_labels(sizes, "random", 2), drawn_heads(rows, bias=True)
    exact = both(labels, heads, sizes)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = both(labels, heads, sizes)
    for right, one, two in zip(exact, ours, theirs, strict=True):
        assert one.dtype == right.dtype
        assert (one - right).norm() <= 1.5 * (two - right).norm() + 1e-3 * right.norm()


@pytest.mark.long
@pytest.mark.parametrize(("rows", "sizes"), [((30, 4), (34,)), ((33,), (11, 11, 11))])
def test_compiled_is_the_same(rows, sizes):
    labels, heads = drawn_labels(sizes, "random", 2), drawn_heads(rows, bias=True)
    assert_close(both(labels, heads, sizes, compiled=True))


def test_bfloat16_weights_get_bfloat16_gradients():
    labels, heads = drawn_labels((34,), "random", 3), drawn_heads((30, 4), bias=False)
    heads = [Head(head.weight.detach().bfloat16().requires_grad_()) for head in heads]
    found = label_positions(labels)
    hidden = torch.randn(BATCH * LENGTH, WIDTH).bfloat16().requires_grad_()
    options = {"weights": torch.ones(1), "sizes": (34,), "chunk_bytes": SMALL}
    linear_cross_entropy(hidden, heads, found.positions, found.labels, **options).total.backward()
    ours = [hidden.grad, *(head.weight.grad for head in heads)]
    twins = [each.detach().float().requires_grad_() for each in (hidden, *(head.weight for head in heads))]
    plain_loss(twins[0], [Head(one) for one in twins[1:]], labels, torch.ones(1), (34,)).total.backward()
    for one, two in zip(ours, twins, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.float() - two.grad).norm() <= 0.02 * two.grad.norm()


@pytest.mark.parametrize("which", range(3))
def test_gradients_agree_with_differences(which):
    draw = torch.Generator().manual_seed(which)
    tensors = [torch.randn(*shape, dtype=torch.float64, generator=draw) for shape in ((7, 3), (10, 3), (10,))]
    found = label_positions(torch.tensor([[[0, IGNORE, 3, 4, IGNORE, 1, 0], [2, IGNORE, 3, IGNORE, 1, 1, 2]]]))
    options = {"weights": torch.tensor([0.3, 2.0], dtype=torch.float64), "sizes": (5, 5)}

    def total(tensors: list[Tensor]) -> Tensor:
        hidden, *head = tensors
        return linear_cross_entropy(hidden, [Head(*head)], found.positions, found.labels, **options).total

    total([each.requires_grad_() for each in tensors]).backward()
    direction = torch.randn(tensors[which].shape, dtype=torch.float64, generator=draw)
    with torch.no_grad():
        ahead, behind = (
            total([each + sign * 1e-4 * direction if i == which else each for i, each in enumerate(tensors)])
            for sign in (1, -1)
        )
    assert float((ahead - behind) / 2e-4) == pytest.approx(float((tensors[which].grad * direction).sum()), rel=1e-6)


def test_a_second_backward_pass_is_refused():
    heads, found = drawn_heads((34,), bias=False), label_positions(drawn_labels((34,), "random", 0))
    hidden = torch.randn(BATCH * LENGTH, WIDTH)
    options = {"weights": torch.ones(1), "sizes": (34,)}
    loss = linear_cross_entropy(hidden, heads, found.positions, found.labels, **options).total
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward can be called once"):
        loss.backward()


def test_gradients_add_up_over_batches():
    heads, hidden = drawn_heads((34,), bias=False), torch.randn(BATCH * LENGTH, WIDTH)
    options = {"weights": torch.ones(1), "sizes": (34,), "chunk_bytes": SMALL}
    batches = [drawn_labels((34,), "random", seed) for seed in range(3)]
    for labels in batches:
        found = label_positions(labels)
        linear_cross_entropy(hidden, heads, found.positions, found.labels, **options).total.backward()
    ours, heads[0].weight.grad = heads[0].weight.grad.clone(), None
    sum(plain_loss(hidden, heads, labels, torch.ones(1), (34,)).total for labels in batches).backward()
    assert torch.allclose(ours, heads[0].weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trainable", [True, False])
def test_logits_of_one_chunk_are_all_that_is_ever_in_memory(trainable):
    sizes, chunk_bytes = (4096,), 4 * 4096 * MULTIPLE
    heads = [Head(nn.Linear(WIDTH, 4096, bias=False).weight.requires_grad_(trainable))]
    hidden = torch.randn(1024, WIDTH, requires_grad=True)
    found = label_positions(torch.randint(4096, (1, 1, 1024)))

    def step() -> None:
        options = {"weights": torch.ones(1), "sizes": sizes, "chunk_bytes": chunk_bytes}
        linear_cross_entropy(hidden, heads, found.positions, found.labels, **options).total.backward()

    kept = hidden.nbytes + trainable * heads[0].weight.nbytes
    assert peak_bytes(step, hidden.device) - kept <= 1.3 * chunk_bytes
    plain = peak_bytes(lambda: plain_loss(hidden, heads, found.labels.T[None], torch.ones(1), sizes), hidden.device)
    assert plain >= 16 * chunk_bytes  # the plain computation stores all logits at once


class _Model(nn.Module):
    """A toy model with a trunk and two heads, the second of which has labels in some batches only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.text, self.audio = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 34), nn.Linear(WIDTH, 33)

    def forward(self, x: Tensor, text: Tensor, audio: Tensor) -> Tensor:
        hidden, total = self.trunk(x), 0
        for head, labels, sizes in ((self.text, text, (34,)), (self.audio, audio, (11, 11, 11))):
            found = label_positions(labels)
            options = {"weights": torch.ones(len(sizes)), "sizes": sizes, "chunk_bytes": SMALL}
            heads = [Head(head.weight, head.bias)]
            total = total + linear_cross_entropy(hidden, heads, found.positions, found.labels, **options).total
        return total


def _batch(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    inputs = torch.randn(BATCH * LENGTH, 4, generator=torch.Generator().manual_seed(rank))
    masks = "random" if rank == 0 else "nothing"
    return inputs, drawn_labels((34,), "random", rank), drawn_labels((11, 11, 11), masks, rank)


def _train(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(
        _Model(), find_unused_parameters=True, gradient_as_bucket_view=True
    )
    model(*_batch(rank)).backward()
    if rank == 0:
        torch.save([parameter.grad for parameter in model.parameters()], f"{folder}/gradients.pt")
    torch.distributed.destroy_process_group()


def test_processes_average_their_gradients(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_train, args=(port, str(tmp_path)), nprocs=2)
    model = _Model()
    sum(model(*_batch(rank)) for rank in range(2)).backward()
    for ours, parameter in zip(torch.load(tmp_path / "gradients.pt"), model.parameters(), strict=True):
        assert torch.allclose(2 * ours, parameter.grad, rtol=1e-4, atol=1e-4)
