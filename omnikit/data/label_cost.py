"""Cost of computing a label in a training step, compared with that of a position."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from omnikit.interfaces import Backbone, count_parameters
from omnikit.model import OmniLM


@dataclass(frozen=True)
class LabelCost:
    """Cost of the heads at a labelled position in units of the cost of a position, which passes all blocks."""

    text: float = 0.0
    """Cost of a label in the text stream."""
    audio: float = 0.0
    """Cost of the labels in all audio streams at one position."""


def label_cost(model: OmniLM) -> LabelCost:
    """Return the cost of a model's labels, estimated from numbers of weights: those of a head by those of all blocks.

    A weight costs one multiplication at each position that it is applied to. With Qwen2-0.5B and six blocks of TTS
    adapter, a text label costs 0.3 positions and those of seven audio streams with SNAC's codebooks 0.06.
    """
    blocks = count_parameters(model.llm) - _vocabulary_weights(model.llm)
    if model.tts_adapter is not None:
        blocks += count_parameters(model.tts_adapter)
    sizes, blocks = model.layout.sizes, max(1, blocks)
    return LabelCost(sizes[0] * model.llm.dim / blocks, sum(sizes[1:]) * model.llm.dim / blocks)


def _vocabulary_weights(llm: Backbone) -> int:
    """Return the number of weights of the embedding table and the head, tied ones counted once."""
    found = {}
    for module in llm.modules():
        head = isinstance(module, nn.Linear) and (module.out_features, module.in_features) == (llm.vocab_size, llm.dim)
        if head or isinstance(module, nn.Embedding):
            found[id(module.weight)] = module.weight.numel()
    return sum(found.values())
