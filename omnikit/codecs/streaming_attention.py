"""Streaming attention for Mimi's transformer, in which the rows of a batch may be at different positions.

transformers has one position for a whole batch. Here each row has its own. The cache holds from the start as many keys
and values as a position may attend to, so that all caches have the same shape.

Letters: B batch, n positions of a chunk, W window, D width, h heads, d width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.mimi.modeling_mimi import apply_rotary_pos_emb


def transform(transformer: nn.Module, x: Tensor, memory: dict[nn.Module, Any]) -> Tensor:
    """Return the outputs [B, n, D] of a `MimiTransformerModel` for the next chunk of its input [B, n, D].

    Args:
        transformer: the model.
        x: chunk of the input.
        memory: positions, keys and values of the earlier chunks, which are updated.
    """
    before = memory.get(transformer, torch.zeros(len(x), dtype=torch.int64, device=x.device))
    positions = before[:, None] + torch.arange(x.shape[1], device=x.device)
    memory[transformer] = before + x.shape[1]
    turns, mask = transformer.rotary_emb(x, positions), visible(before, x.shape[1], transformer.config.sliding_window)
    for layer in transformer.layers:
        y = _attend(layer.self_attn, layer.input_layernorm(x), turns, mask, memory)
        x = x + layer.self_attn_layer_scale(y)
        x = x + layer.mlp_layer_scale(layer.mlp(layer.post_attention_layernorm(x)))
    return x


def visible(before: Tensor, positions: int, window: int) -> Tensor:
    """Return the attention mask [B, 1, n, W - 1 + n] of the next n positions over the W - 1 before them and themselves.

    Args:
        before: number of positions that each batch row has had so far [B].
        positions: n.
        window: W, number of positions, itself included, that a position may attend to.
    """
    query = torch.arange(positions, device=before.device)[:, None]
    key = torch.arange(1 - window, positions, device=before.device)
    return ((key <= query) & (key > query - window) & (key >= -before[:, None, None]))[:, None]


def _attend(layer: nn.Module, x: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor, memory: dict) -> Tensor:
    query, key, value = (
        project(x).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
        for project in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *turns)
    nothing = key.new_zeros(*key.shape[:2], mask.shape[-1] - mask.shape[-2], key.shape[-1])
    past = memory.get(layer, (nothing, nothing))
    key, value = (torch.cat(both, dim=2) for both in zip(past, (key, value), strict=True))
    memory[layer] = key[:, :, x.shape[1] :], value[:, :, x.shape[1] :]
    grouped = layer.num_key_value_groups != 1
    y = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=layer.scaling, enable_gqa=grouped
    )
    return layer.o_proj(y.transpose(1, 2).flatten(2))
