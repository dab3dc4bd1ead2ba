"""Test the contract of every backbone that has a part file in hparams/llm/; a new one is covered by its file."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from omnikit.adapters import ConcatAdapter
from omnikit.hparams import build_part, choices
from omnikit.interfaces import Backbone, count_parameters
from omnikit.model import OmniLM
from omnikit.patterns import Delayed
from omnikit.weights import load_into, save_weights
from tests.unit.toy import ToyCodec, ToyEncoder

NAMES = choices("llm")
LENGTH = 20  # longer than the window of sliding layers in the size tiny


def build(name: str) -> Backbone:
    torch.manual_seed(0)
    return build_part("llm", name, size="tiny", tokenizer="bytes")


def omni(name: str) -> OmniLM:
    return OmniLM(
        encoder=ToyEncoder(), adapter=functools.partial(ConcatAdapter, stride=2), llm=build(name),
        codec=ToyCodec(), pattern=functools.partial(Delayed), tts_blocks=1,
    ).eval()  # fmt: skip


@pytest.fixture(params=NAMES)
def llm(request) -> Backbone:
    return build(request.param).eval()


def places(batch: int, begin: int, end: int) -> torch.Tensor:
    return torch.arange(begin, end)[None].expand(batch, -1)


def step_by_step(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Compute outputs for inputs [B, L, D] over a KV cache: the first half at once, then one position at a time."""
    cache, half = module.new_cache(), LENGTH // 2
    ends = [half, *range(half + 1, LENGTH + 1)]
    parts = zip([0, *ends], ends, strict=False)
    return torch.cat([module(inputs[:, a:b], places(len(inputs), a, b), None, cache) for a, b in parts], dim=1)


def test_shapes(llm):
    ids = torch.randint(0, llm.vocab_size, (2, LENGTH))
    embeddings = llm.embed(ids)
    assert embeddings.shape == (2, LENGTH, llm.dim)
    hidden = llm(embeddings, places(2, 0, LENGTH))
    normed = llm.final_norm(hidden)
    assert hidden.shape == normed.shape == embeddings.shape
    assert not torch.allclose(hidden, normed)
    assert llm.head(normed).shape == (2, LENGTH, llm.vocab_size)
    assert llm.head(normed[0, 0]).shape == (llm.vocab_size,)
    assert llm.tokenizer.decode(llm.tokenizer.encode("abc")) == "abc"


def test_new_rows_are_as_wide_as_the_embeddings(llm):
    spread = llm.embed(torch.arange(llm.vocab_size)).std().item()
    assert spread == pytest.approx(llm.embedding_std, rel=0.1)


@torch.inference_mode()
def test_the_cache_equals_the_whole(llm):
    inputs = torch.randn(2, LENGTH, llm.dim)
    torch.testing.assert_close(step_by_step(llm, inputs), llm(inputs, places(2, 0, LENGTH)), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_caches_rows_can_be_selected(llm):
    inputs, half = torch.randn(2, LENGTH, llm.dim), LENGTH // 2
    whole = llm(inputs, places(2, 0, LENGTH))
    cache, begin = llm.new_cache(), 0
    for end, rows in ((half, [1, 0, 1]), (LENGTH - 1, [2, 1]), (LENGTH, None)):  # indices into the current rows
        hidden = llm(inputs[:, begin:end], places(len(inputs), begin, end), None, cache)
        torch.testing.assert_close(hidden, whole[:, begin:end], atol=1e-5, rtol=1e-4)
        if rows is not None:
            cache.reorder_cache(torch.tensor(rows))
            inputs, whole, begin = inputs[rows], whole[rows], end


@torch.inference_mode()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(llm, side):
    inputs, pads = torch.randn(1, LENGTH, llm.dim), torch.randn(1, 5, llm.dim)
    alone = llm(inputs, places(1, 0, LENGTH))
    order = [pads, inputs] if side == "left" else [inputs, pads]
    inside = [torch.full((1, part.shape[1]), part is inputs, dtype=torch.long) for part in order]
    mask = torch.cat(inside, dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    padded = llm(torch.cat(order, dim=1), positions, mask)[:, mask[0].bool()]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_blocks_are_of_its_kind(llm):
    blocks = llm.blocks(2).eval()
    inputs = torch.randn(2, LENGTH, llm.dim)
    whole = blocks(inputs, places(2, 0, LENGTH))
    assert whole.shape == inputs.shape
    torch.testing.assert_close(step_by_step(blocks, inputs), whole, atol=1e-5, rtol=1e-4)
    assert {type(layer) for layer in blocks.trunk.layers} == {type(layer) for layer in llm.trunk.layers}
    assert not {id(p) for p in blocks.parameters()} & {id(p) for p in llm.parameters()}
    layers, norm = llm.trunk.layers, llm.norm
    assert count_parameters(blocks) == 2 * count_parameters(layers) // len(layers) + count_parameters(norm)


def test_gradients_flow(llm):
    ids = torch.randint(0, llm.vocab_size, (2, LENGTH))
    logits = llm.head(llm.final_norm(llm(llm.embed(ids), places(2, 0, LENGTH))))
    nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    without = [name for name, parameter in llm.named_parameters() if parameter.grad is None]
    assert not without
    assert llm.trunk.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_system_with_it_is_saved_and_loaded(name, tmp_path):
    model, other = omni(name), omni(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    load_into(other, save_weights(model, tmp_path, dtype=torch.float32))
    tied = model.llm.config.tie_word_embeddings
    assert (other.llm.lm_head.weight is other.llm.trunk.get_input_embeddings().weight) == tied
    size = model.layout.sizes
    steps = torch.stack([torch.randint(0, n, (2, LENGTH)) for n in size], dim=1)
    with torch.inference_mode():
        assert model.text_logits(model(steps).text).equal(other.text_logits(other(steps).text))


@pytest.mark.parametrize("name", NAMES)
def test_at_true_size_it_has_the_librarys_parameters(name):
    with torch.device("meta"):
        model = build_part("llm", name)
        library = AutoModelForCausalLM.from_config(model.config)
    assert count_parameters(model) == count_parameters(library)
    assert next(model.parameters()).is_meta
