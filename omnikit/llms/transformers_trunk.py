"""The pieces that every causal language model of transformers has, whatever they are called there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from omnikit.llms.llama import Trunk

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "embedding_norm")


def take_norm(trunk: nn.Module) -> nn.Module:
    """Take the final norm out of a trunk: what the trunk gives is then the hidden state before it.

    Raises:
        ValueError: no final norm under any name known here.
    """
    for name in _NORMS:
        if isinstance(norm := getattr(trunk, name, None), nn.Module):
            setattr(trunk, name, nn.Identity())
            return norm
    raise ValueError(f"llm.config.model_type: {type(trunk).__name__} has no final norm ({', '.join(_NORMS)})")


def embedding_scale(trunk: nn.Module) -> float:
    """What an embedding table's rows are multiplied by (Gemma: the square root of the width)."""
    return getattr(trunk.get_input_embeddings(), "scalar_embed_scale", 1.0)


def run(
    trunk: nn.Module, embeddings: Tensor, positions: Tensor, mask: Tensor | None, *, cache: Any, cache_argument: str
) -> Tensor:
    """Embeddings [B, L, D] -> hidden states [B, L, D], see `Backbone.forward`.

    Args:
        cache_argument: the name by which the trunk takes the cache, see `omnikit.kv_cache`; found out beforehand, so
            that torch can compile this.
    """
    if isinstance(trunk, Trunk):
        return trunk(embeddings, positions, mask, cache)
    out = trunk(
        inputs_embeds=embeddings,
        position_ids=positions,
        attention_mask=mask,
        use_cache=cache is not None,
        **{cache_argument: cache},
    )
    return out.last_hidden_state


def finish_logits(logits: Tensor, config: PretrainedConfig) -> Tensor:
    """What some models do behind the head's matrix: Cohere and HyperCLOVA multiply, Granite divides, Gemma 2 bounds
    softly."""
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (factor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / factor if config.model_type.startswith("granite") else logits * factor
    if (bound := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / bound) * bound
    return logits
