"""Backbones of Llama's kind computed without transformers: its model types qwen2, qwen3, llama and mistral.

    x -> norm -> queries, keys, values -> rotary positions -> attention -> + x -> norm -> gated MLP -> + x     a block

Modules and weights have the names that they have in transformers, so that the same checkpoints can be loaded, and
`Block` computes with transformers' modules, too. The KV cache is passed to the blocks as a function: it grows in
`Trunk`, and has a fixed size in `omnikit.engines.static`.

Letters: B sequences, L new positions, C positions including earlier ones, D width, H heads, G heads of keys and values,
E width of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnikit.llms.llama_config import LlamaConfig, rotary_rates, rotary_scaling, supports
from omnikit.skip_init import empty_on_meta

__all__ = [
    "Block",
    "JoinedLinear",
    "KeyValues",
    "LlamaConfig",
    "Trunk",
    "apply_rotary",
    "attention_bias",
    "blocks_of",
    "normed",
    "rotary_tables",
    "supports",
]  # fmt: skip

CacheUpdate = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""Type of functions that update a KV cache: (block number, new keys and values [B, L, 2 G, E]) -> keys, values.

The results are all keys and all values to attend to, [B, G, C, E] each.
"""


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    """Apply root mean square normalization over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467)."""
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def attention_bias(
    places: Tensor, columns: int, window: int | None, dtype: torch.dtype, mask: Tensor | None = None
) -> Tensor:
    """Return an additive attention mask: 0 for columns that may be attended to, else the least number of the type.

    Args:
        places: column of each new position [B or 1, L].
        columns: number of columns C.
        window: number of columns that a position attends to, its own included; None = all up to its own.
        mask: [B, C], 1 where a column may be attended to; None = everywhere.

    Returns:
        [B or 1, 1, L, C].
    """
    ages = places[..., None] - torch.arange(columns, device=places.device)
    near = ages >= 0
    if window is not None:
        near = near & (ages < window)
    if mask is not None:
        near = near & (mask[:, None] > 0)
    # not minus infinity: a padded position may have nothing to attend to; its keys and values would be NaN in the next
    # block, and a NaN stays NaN under every mask
    return torch.zeros_like(near, dtype=dtype).masked_fill(~near, torch.finfo(dtype).min)[:, None]


def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Compute grouped-query attention.

    For a single position the query heads of a key head are the rows of one product, so that keys and values are not
    copied. For several positions copies are smaller than a mask for each head.

    Args:
        query: queries [B, L, H, E].
        keys: keys [B, G, C, E].
        values: values [B, G, C, E].
        bias: additive mask [B or 1, 1, L, C], see `attention_bias`.

    Returns:
        [B, L, H * E].
    """
    groups, each = keys.shape[1], query.shape[2] // keys.shape[1]
    if query.shape[1] == 1:
        rows = query[:, 0].unflatten(1, (groups, -1))  # [B, G, H / G, E]
        return F.scaled_dot_product_attention(rows, keys, values, attn_mask=bias).flatten(1)[:, None]
    if each > 1:
        keys, values = keys.repeat_interleave(each, dim=1), values.repeat_interleave(each, dim=1)
    found = F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, attn_mask=bias)
    return found.transpose(1, 2).flatten(2)


def rotary_tables(
    positions: Tensor, rotary: nn.Module, numbers: LlamaConfig, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines [B, L, H + 2 G, E] of the rotary positions [B, L], for `apply_rotary`.

    Values get cosine 1 and sine 0, which leaves them unchanged, so that queries, keys and values can be one tensor.
    Sines are negative in the first half of each head.

    Args:
        positions: positions [B, L].
        rotary: the `rotary_emb` of a trunk.
        numbers: configuration of the backbone.
        dtype: type of the result.
    """
    angles = positions[..., None].float() * rotary.inv_freq.float()
    cos, sin = angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling
    heads, groups = numbers.num_attention_heads, numbers.num_key_value_heads

    def of_all_heads(table: Tensor, of_values: float) -> Tensor:
        still = table.new_full((*positions.shape, groups, numbers.head_dim), of_values)
        return torch.cat([table[:, :, None].expand(-1, -1, heads + groups, -1), still], dim=2).to(dtype)

    return of_all_heads(torch.cat([cos, cos], dim=-1), 1.0), of_all_heads(torch.cat([-sin, sin], dim=-1), 0.0)


def apply_rotary(heads: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions to queries, keys and values [B, L, H + 2 G, E], pairing the halves of each head.

    Args:
        turn: cosines and sines, see `rotary_tables`.
    """
    return torch.addcmul(heads * turn[0], heads.roll(heads.shape[-1] // 2, -1), turn[1])


class JoinedLinear:
    """Several linear layers with the same input, computed together.

    Args:
        layers: linear layers, all of them with a bias, or none.
        joined: compute the layers by one product. Their weights become views of one matrix, which takes no further
            memory and leaves the layers usable. After a change of device or type they have to be joined again.
    """

    def __init__(self, layers: Sequence[nn.Module], *, joined: bool = False):
        self.layers = layers
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        if joined and all(type(layer) is nn.Linear for layer in layers):  # a layer with LoRA computes its own output
            self.weight = _joined([layer.weight for layer in layers])
            self.bias = None if layers[0].bias is None else _joined([layer.bias for layer in layers])

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the layers' outputs for an input [..., D], side by side in the last dimension."""
        if self.weight is not None:
            return F.linear(x, self.weight, self.bias)
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


def _joined(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Concatenate parameters along the first dimension, and make the parameters views of the result."""
    # an engine may be opened in inference mode, but a model that is trained later must not get inference tensors
    with torch.inference_mode(parameters[0].is_inference()), torch.no_grad():
        if not _adjacent(parameters):
            whole = torch.cat([parameter.data for parameter in parameters])
            for parameter, part in zip(parameters, whole.split([len(p) for p in parameters]), strict=True):
                parameter.data = part
        first, rows = parameters[0].data, sum(len(parameter) for parameter in parameters)
        return first.as_strided((rows, *first.shape[1:]), first.stride())


def _adjacent(parameters: Sequence[Tensor]) -> bool:
    """Return whether parameters are adjacent in memory, as they are if an engine has joined them before."""
    pairs = list(itertools.pairwise(parameters))
    return all(p.is_contiguous() for p in parameters) and all(
        a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
        and a.storage_offset() + a.numel() == b.storage_offset()
        for a, b in pairs
    )


class Block:
    """One transformer block as a function, over a layer of `Trunk` or of transformers.

    Args:
        layer: module with `self_attn`, `mlp` and two norms.
        numbers: configuration of the backbone.
        number: index of the block in the KV cache.
        window: number of positions that each position attends to, see `attention_bias`.
        joined: join linear layers, see `JoinedLinear`, and add to the block's input in place.
    """

    def __init__(
        self, layer: nn.Module, numbers: LlamaConfig, number: int, window: int | None, *, joined: bool = False
    ):
        attention, mlp = layer.self_attn, layer.mlp
        self.layer, self.number, self.window, self.joined = layer, number, window, joined
        self.heads, self.groups, self.size = numbers.num_attention_heads, numbers.num_key_value_heads, numbers.head_dim
        self.query_norm, self.key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self.qkv = JoinedLinear([attention.q_proj, attention.k_proj, attention.v_proj], joined=joined)
        self.gate_up = JoinedLinear([mlp.gate_proj, mlp.up_proj], joined=joined)

    def __call__(
        self, x: Tensor, turn: tuple[Tensor, Tensor], bias: dict[int | None, Tensor], keep: CacheUpdate
    ) -> Tensor:
        """Compute the block's output [B, L, D] for its input [B, L, D].

        Args:
            turn: cosines and sines of the positions, see `rotary_tables`.
            bias: mapping from window to additive mask, see `attention_bias`.
            keep: function that updates the KV cache, see `CacheUpdate`.
        """
        heads = self.qkv(normed(x, self.layer.input_layernorm)).unflatten(-1, (-1, self.size))
        heads = apply_rotary(self._normed(heads), turn)
        keys, values = keep(self.number, heads[:, :, self.heads :])
        found = attend(heads[:, :, : self.heads], keys, values, bias[self.window])
        x = self._add(x, self.layer.self_attn.o_proj, found)
        gate, up = self.gate_up(normed(x, self.layer.post_attention_layernorm)).chunk(2, dim=-1)
        return self._add(x, self.layer.mlp.down_proj, F.silu(gate) * up)

    def _normed(self, heads: Tensor) -> Tensor:
        """Apply Qwen3's norms of queries and keys to [B, L, H + 2 G, E]; change nothing for backbones without them."""
        if self.query_norm is None:
            return heads
        query, key, value = heads.split([self.heads, self.groups, self.groups], dim=2)
        return torch.cat([normed(query, self.query_norm), normed(key, self.key_norm), value], dim=2)

    def _add(self, x: Tensor, layer: nn.Module, y: Tensor) -> Tensor:
        """Return x [B, L, D] + layer(y); if layers are joined, by one operation that overwrites x."""
        if not self.joined or type(layer) is not nn.Linear or layer.bias is not None:
            return x + layer(y)
        x.flatten(0, 1).addmm_(y.flatten(0, 1), layer.weight.t())
        return x


def blocks_of(trunk: nn.Module, *, first: int = 0, joined: bool = False) -> list[Block]:
    """Return the blocks of a trunk, which may be a `Trunk` or one of transformers.

    Args:
        first: index of the first block in the KV cache.
        joined: join linear layers, see `Block`.

    Raises:
        ValueError: a backbone that is not supported here; the message is the reason in one line.
    """
    numbers = LlamaConfig.of(trunk.config)
    pairs = zip(trunk.layers, numbers.windows, strict=True)
    return [Block(layer, numbers, first + n, window, joined=joined) for n, (layer, window) in enumerate(pairs)]


class KeyValues:
    """A KV cache that grows, with the attributes of the caches of transformers."""

    def __init__(self, layers: int):
        self.layers = [LayerKeyValues() for _ in range(layers)]

    def get_seq_length(self) -> int:
        """Return the number of positions in the cache."""
        keys = self.layers[0].keys if self.layers else None
        return 0 if keys is None else keys.shape[2]

    def keep(self, number: int, new: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values [B, L, 2 G, E] of a block and return all of them, see `CacheUpdate`."""
        layer, (keys, values) = self.layers[number], _heads_first(new)
        if layer.keys is not None:
            keys, values = torch.cat([layer.keys, keys], dim=2), torch.cat([layer.values, values], dim=2)
        layer.keys, layer.values = keys, values
        return keys, values

    def reorder_cache(self, rows: Tensor) -> None:
        """Replace the sequences of the cache by those with the given indices [B']; an index may occur several times."""
        self._change(lambda cached: cached.index_select(0, rows.to(cached.device)))

    def crop(self, length: int) -> None:
        """Drop all positions but the first `length`; if `length` is negative, drop the last `-length`."""
        self._change(lambda cached: cached[:, :, :length])

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        for layer in self.layers:
            if layer.keys is not None:
                layer.keys, layer.values = change(layer.keys), change(layer.values)


class LayerKeyValues:
    """Keys and values [B, G, C, E] of one block; None before the first position."""

    joins = True  # caches may be joined to a batch, see `omnikit.kv_cache`

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None


def _heads_first(new: Tensor) -> tuple[Tensor, Tensor]:
    """Split new keys and values [B, L, 2 G, E] into keys and values, each [B, G, L, E]."""
    keys, values = new.transpose(1, 2).chunk(2, dim=1)
    return keys, values


class RMSNorm(nn.Module):
    """Root mean square normalization with a learned scale, see `normed`."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return normed(x, self)


class Rotary(nn.Module):
    """A module that computes cosines and sines of rotary positions, see `rotary_rates`."""

    def __init__(self, numbers: LlamaConfig):
        super().__init__()
        rates = empty_on_meta((numbers.head_dim // 2,), lambda: rotary_rates(numbers))
        self.register_buffer("inv_freq", rates, persistent=False)
        self.attention_scaling = rotary_scaling(numbers)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosine and the sine [B, L, E] of positions [B, L], in the type of x."""
        angles = positions[..., None].float() * self.inv_freq.float()
        angles = torch.cat([angles, angles], dim=-1)
        return tuple((table * self.attention_scaling).to(x.dtype) for table in (angles.cos(), angles.sin()))


class Attention(nn.Module):
    """Weights of the attention of one block; `Block` computes it."""

    def __init__(self, numbers: LlamaConfig):
        super().__init__()
        dim, self.head_dim = numbers.hidden_size, numbers.head_dim
        heads, groups = (n * self.head_dim for n in (numbers.num_attention_heads, numbers.num_key_value_heads))
        self.q_proj = nn.Linear(dim, heads, bias=numbers.qkv_bias)
        self.k_proj = nn.Linear(dim, groups, bias=numbers.qkv_bias)
        self.v_proj = nn.Linear(dim, groups, bias=numbers.qkv_bias)
        self.o_proj = nn.Linear(heads, dim, bias=numbers.output_bias)
        if numbers.model_type == "qwen3":
            self.q_norm = RMSNorm(self.head_dim, numbers.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, numbers.rms_norm_eps)


class MLP(nn.Module):
    """A gated MLP (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, numbers: LlamaConfig):
        super().__init__()
        dim, hidden, bias = numbers.hidden_size, numbers.intermediate_size, numbers.mlp_bias
        self.gate_proj = nn.Linear(dim, hidden, bias=bias)
        self.up_proj = nn.Linear(dim, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Weights of one transformer block; `Block` computes it."""

    def __init__(self, numbers: LlamaConfig):
        super().__init__()
        self.self_attn, self.mlp = Attention(numbers), MLP(numbers)
        self.input_layernorm = RMSNorm(numbers.hidden_size, numbers.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(numbers.hidden_size, numbers.rms_norm_eps)


class Trunk(nn.Module):
    """A backbone without its head, for inference: its weights have to be read from a file.

    Args:
        numbers: configuration of the backbone.
        embeds: whether the trunk has an embedding table.
    """

    def __init__(self, numbers: LlamaConfig, *, embeds: bool = True):
        super().__init__()
        self.config = numbers
        self.embed_tokens = nn.Embedding(numbers.vocab_size, numbers.hidden_size) if embeds else nn.Identity()
        self.layers = nn.ModuleList(Layer(numbers) for _ in range(numbers.num_hidden_layers))
        self.norm: nn.Module = RMSNorm(numbers.hidden_size, numbers.rms_norm_eps)
        self.rotary_emb = Rotary(numbers)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding table."""
        return self.embed_tokens

    def forward(
        self, embeddings: Tensor, positions: Tensor, mask: Tensor | None = None, cache: KeyValues | None = None
    ) -> Tensor:
        """Compute the hidden states [B, L, D] of embeddings [B, L, D], after the module `norm`.

        The arguments are those of `omnikit.interfaces.Backbone.forward`.
        """
        before = 0 if cache is None else cache.get_seq_length()
        columns = before + embeddings.shape[1]
        blocks, x = blocks_of(self), embeddings
        turn = rotary_tables(positions, self.rotary_emb, self.config, x.dtype)
        places = torch.arange(before, columns, device=x.device)[None]
        bias = {window: attention_bias(places, columns, window, x.dtype, mask) for window in set(self.config.windows)}
        keep: Any = (lambda _, new: _heads_first(new)) if cache is None else cache.keep
        for block in blocks:
            x = block(x, turn, bias, keep)
        return self.norm(x)
