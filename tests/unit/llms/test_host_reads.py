"""Test that a training step of a backbone reads nothing back from the device, which would make the CPU wait for it."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from omnikit.llms.transformers_lm import TransformersLM
from omnikit.llms.transformers_trunk import sequences_of_rows
from tests.unit.toy import tokenizer_file

TYPES = ("qwen2", "qwen3", "llama", "mistral", "gemma", "gemma3_text", "phi", "phi3")
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")


class HostReads(TorchDispatchMode):
    """A mode that records the operations that would copy values from a GPU to the CPU."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITS or (name == "index" and any(_is_mask(each) for each in args[1])):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def _is_mask(index: torch.Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


def backbone(model_type: str) -> TransformersLM:
    torch.manual_seed(0)
    return TransformersLM(config={"model_type": model_type}, tokenizer=tokenizer_file(), size="tiny").eval()


def step(llm: TransformersLM, embeddings: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    hidden = llm(embeddings, positions)
    hidden.square().sum().backward()
    return hidden.detach()


@pytest.mark.parametrize("model_type", TYPES)
def test_a_step_reads_nothing_back_and_computes_the_same(model_type):
    llm = backbone(model_type)
    positions = torch.arange(24)[None].expand(3, -1)
    embeddings = torch.randn(3, 24, llm.dim, requires_grad=True)
    with HostReads() as reads:
        found = step(llm, embeddings, positions)
    assert reads.found == []
    assert torch.equal(found, llm.trunk(inputs_embeds=embeddings, position_ids=positions, use_cache=False)[0])


def test_without_the_promise_transformers_looks_at_the_positions():
    llm = backbone("qwen2")
    with sequences_of_rows(None):
        pass
    with HostReads() as reads:
        llm.trunk(inputs_embeds=torch.randn(3, 24, llm.dim), position_ids=torch.arange(24)[None], use_cache=False)
    assert reads.found
