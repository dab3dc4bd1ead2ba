"""Access to the components that causal language models of transformers share under different names."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from omnikit.llms.llama import Trunk

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_NOT_KNOWN = "not known"
_sequences: ContextVar[Tensor | str | None] = ContextVar("sequences", default=_NOT_KNOWN)
_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "embedding_norm")


def take_norm(trunk: nn.Module) -> nn.Module:
    """Remove the final norm from a trunk and return it; the trunk then outputs the hidden state before the norm.

    Raises:
        ValueError: the trunk has no final norm under a known name.
    """
    for name in _NORMS:
        if isinstance(norm := getattr(trunk, name, None), nn.Module):
            setattr(trunk, name, nn.Identity())
            return norm
    raise ValueError(f"llm.config.model_type: {type(trunk).__name__} has no final norm ({', '.join(_NORMS)})")


def embedding_scale(trunk: nn.Module) -> float:
    """Return the factor that a model's embeddings are multiplied by (Gemma: the square root of the width)."""
    return getattr(trunk.get_input_embeddings(), "scalar_embed_scale", 1.0)


def run(
    trunk: nn.Module,
    embeddings: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    *,
    cache: Any,
    cache_argument: str,
    sequences: Tensor | None = None,
) -> Tensor:
    """Compute the hidden states [B, L, D] of embeddings [B, L, D] with a trunk, see `Backbone.forward`.

    Args:
        cache_argument: name of the trunk's argument for the KV cache, see `omnikit.kv_cache`; looked up beforehand, so
            that torch can compile this function.
    """
    assert sequences is None or (mask is None and cache is None), "packed rows have neither mask nor cache"
    if isinstance(trunk, Trunk):
        assert sequences is None, "packed rows are computed in training only"
        return trunk(embeddings, positions, mask, cache)
    given = {
        "inputs_embeds": embeddings,
        "position_ids": positions,
        "attention_mask": mask,
        "use_cache": cache is not None,
        cache_argument: cache,
    }
    if mask is not None or cache is not None:
        return trunk(**given).last_hidden_state
    with sequences_of_rows(sequences):
        return trunk(**given).last_hidden_state


@contextmanager
def sequences_of_rows(sequences: Tensor | None) -> Iterator[None]:
    """Tell transformers in a `with` block which positions of its input belong to one sequence.

    From this it makes masks for each kind of attention. Otherwise, without a mask, it looks for positions that start
    again within a row, which makes the CPU wait for a GPU in each forward pass of backbone and TTS adapter.

    Args:
        sequences: number of the sequence at each position [B, L]; None = each row is one sequence.
    """
    _let_search_be_skipped()
    before = _sequences.set(sequences)
    try:
        yield
    finally:
        _sequences.reset(before)


@functools.cache
def _let_search_be_skipped() -> None:
    """Replace transformers' search for several sequences in a row by one that `sequences_of_rows` can answer."""
    from transformers import masking_utils

    search = masking_utils.find_packed_sequence_indices

    def search_unless_known(position_ids: Tensor) -> Tensor | None:
        known = _sequences.get()
        return search(position_ids) if isinstance(known, str) else known

    masking_utils.find_packed_sequence_indices = search_unless_known


def finishes_logits(config: PretrainedConfig) -> bool:
    """Return whether `finish_logits` changes the logits of a model."""
    names = ("logit_scale", "logits_scaling", "final_logit_softcapping")
    return any(getattr(config, name, None) is not None for name in names)


def finish_logits(logits: Tensor, config: PretrainedConfig) -> Tensor:
    """Apply the scaling that some models add after the head's matrix.

    Cohere and HyperCLOVA multiply the logits by a number, Granite divides them, and Gemma 2 bounds them by tanh.
    """
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (factor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / factor if config.model_type.startswith("granite") else logits * factor
    if (bound := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / bound) * bound
    return logits
