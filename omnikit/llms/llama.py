"""Backbones of Llama's kind, computed without transformers: its model types qwen2, qwen3, llama and mistral.

    x -> norm -> queries, keys, values -> rotary positions -> attention -> + x -> norm -> gated MLP -> + x     a block

Modules and weights have the names that they have in transformers, so that the same checkpoints fill them, and the
functions run over transformers' modules, too. What a block attends to is handed in: keys and values that grow (`Trunk`)
or slots of a fixed size (`omnikit.engines.static`).

Letters: B rows, L new positions, C positions with those before, D width, H heads, G heads of keys and values, E width
of a head.
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
    "Block", "Joint", "KeyValues", "LlamaConfig", "Trunk", "blocks_of", "normed", "scores", "supports", "turned",
    "turns",
]  # fmt: skip

Keep = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""A function: number of a block, its new keys and values [B, L, 2 G, E] -> all keys and all values to attend to, each
[B, G, C, E]."""


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    """Apply root mean square norm over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467)."""
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def scores(places: Tensor, columns: int, window: int | None, dtype: torch.dtype, mask: Tensor | None = None) -> Tensor:
    """Return what is added to the scores of the columns: nothing, or the least number where none may be attended to.

    Args:
        places: column of each new position [B or 1, L].
        columns: C.
        window: number of columns that a position attends to, its own included; None = all up to it.
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
    # block, and a NaN comes through every mask
    return torch.zeros_like(near, dtype=dtype).masked_fill(~near, torch.finfo(dtype).min)[:, None]


def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attention. Of a single position the query heads of a key head are rows of one product, so that keys and values
    need no copies; of several positions these copies are smaller than a mask for each head.

    Args:
        query: [B, L, H, E].
        keys, values: [B, G, C, E].
        bias: [B or 1, 1, L, C], see `scores`.

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


def turns(positions: Tensor, rotary: nn.Module, numbers: LlamaConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Positions [B, L] of a trunk's `rotary_emb` -> the turn to them, for `turned`: cosine and sine [B, L, H + 2 G, E].

    Values are turned by nothing (cosine 1, sine 0): so they may lie beside queries and keys, and a block's new keys and
    values are one tensor. Sines are negative in the first half of each head.
    """
    angles = positions[..., None].float() * rotary.inv_freq.float()
    cos, sin = angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling
    heads, groups = numbers.num_attention_heads, numbers.num_key_value_heads

    def of_all_heads(table: Tensor, of_values: float) -> Tensor:
        still = table.new_full((*positions.shape, groups, numbers.head_dim), of_values)
        return torch.cat([table[:, :, None].expand(-1, -1, heads + groups, -1), still], dim=2).to(dtype)

    return of_all_heads(torch.cat([cos, cos], dim=-1), 1.0), of_all_heads(torch.cat([-sin, sin], dim=-1), 0.0)


def turned(heads: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions to queries, keys and values [B, L, H + 2 G, E], halves of a head against each other."""
    return torch.addcmul(heads * turn[0], heads.roll(heads.shape[-1] // 2, -1), turn[1])


class Joint:
    """Several linear layers that read the same input, computed together.

    Args:
        layers: all of them with a bias, or none.
        joined: compute them by one product. Their weights become views of one matrix: that takes no further memory, and
            the layers stay what they were. After they have been moved to another device or type, join them anew.
    """

    def __init__(self, layers: Sequence[nn.Module], *, joined: bool = False):
        self.layers = layers
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        if joined and all(type(layer) is nn.Linear for layer in layers):  # with LoRA each is computed by itself
            self.weight = _joined([layer.weight for layer in layers])
            self.bias = None if layers[0].bias is None else _joined([layer.bias for layer in layers])

    def __call__(self, x: Tensor) -> Tensor:
        """Input [..., D] -> the layers' outputs side by side."""
        if self.weight is not None:
            return F.linear(x, self.weight, self.bias)
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


def _joined(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return parameters one under the other as one tensor, whose parts they become."""
    # a model that is trained further must not get tensors of the inference mode that an engine may be opened in
    with torch.inference_mode(parameters[0].is_inference()), torch.no_grad():
        if not _adjacent(parameters):
            whole = torch.cat([parameter.data for parameter in parameters])
            for parameter, part in zip(parameters, whole.split([len(p) for p in parameters]), strict=True):
                parameter.data = part
        first, rows = parameters[0].data, sum(len(parameter) for parameter in parameters)
        return first.as_strided((rows, *first.shape[1:]), first.stride())


def _adjacent(parameters: Sequence[Tensor]) -> bool:
    """Return whether parameters lie one behind the other in one piece of memory: a model may serve two engines."""
    pairs = list(itertools.pairwise(parameters))
    return all(p.is_contiguous() for p in parameters) and all(
        a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
        and a.storage_offset() + a.numel() == b.storage_offset()
        for a, b in pairs
    )


class Block:
    """One block as a function, over a layer of `Trunk` or of transformers.

    Args:
        layer: with `self_attn`, `mlp` and two norms.
        number: of the block among those that keys and values are kept of.
        window: see `scores`.
        joined: see `Joint`; also, what is added to `x` is added in its place.
    """

    def __init__(
        self, layer: nn.Module, numbers: LlamaConfig, number: int, window: int | None, *, joined: bool = False
    ):
        attention, mlp = layer.self_attn, layer.mlp
        self.layer, self.number, self.window, self.joined = layer, number, window, joined
        self.heads, self.groups, self.size = numbers.num_attention_heads, numbers.num_key_value_heads, numbers.head_dim
        self.query_norm, self.key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self.qkv = Joint([attention.q_proj, attention.k_proj, attention.v_proj], joined=joined)
        self.gate_up = Joint([mlp.gate_proj, mlp.up_proj], joined=joined)

    def __call__(self, x: Tensor, turn: tuple[Tensor, Tensor], bias: dict[int | None, Tensor], keep: Keep) -> Tensor:
        """Compute the block's output [B, L, D] for its input [B, L, D].

        Args:
            turn: see `turns`.
            bias: `scores` by window.
        """
        heads = self.qkv(normed(x, self.layer.input_layernorm)).unflatten(-1, (-1, self.size))
        heads = turned(self._normed(heads), turn)
        keys, values = keep(self.number, heads[:, :, self.heads :])
        found = attend(heads[:, :, : self.heads], keys, values, bias[self.window])
        x = self._add(x, self.layer.self_attn.o_proj, found)
        gate, up = self.gate_up(normed(x, self.layer.post_attention_layernorm)).chunk(2, dim=-1)
        return self._add(x, self.layer.mlp.down_proj, F.silu(gate) * up)

    def _normed(self, heads: Tensor) -> Tensor:
        """Apply the norms of queries and keys that Qwen3 has to [B, L, H + 2 G, E]; other backbones have none."""
        if self.query_norm is None:
            return heads
        query, key, value = heads.split([self.heads, self.groups, self.groups], dim=2)
        return torch.cat([normed(query, self.query_norm), normed(key, self.key_norm), value], dim=2)

    def _add(self, x: Tensor, layer: nn.Module, y: Tensor) -> Tensor:
        """Return x [B, L, D] + layer(y); joined, in one operation that writes over x."""
        if not self.joined or type(layer) is not nn.Linear or layer.bias is not None:
            return x + layer(y)
        x.flatten(0, 1).addmm_(y.flatten(0, 1), layer.weight.t())
        return x


def blocks_of(trunk: nn.Module, *, first: int = 0, joined: bool = False) -> list[Block]:
    """Return the blocks of a trunk, of `Trunk` or of transformers.

    Args:
        first: number of the first one.
        joined: see `Block`.

    Raises:
        ValueError: a backbone that is not computed here; the message is the reason in one line.
    """
    numbers = LlamaConfig.of(trunk.config)
    pairs = zip(trunk.layers, numbers.windows, strict=True)
    return [Block(layer, numbers, first + n, window, joined=joined) for n, (layer, window) in enumerate(pairs)]


class KeyValues:
    """A cache of keys and values that grows, with the attributes of transformers' own."""

    def __init__(self, layers: int):
        self.layers = [LayerKeyValues() for _ in range(layers)]

    def get_seq_length(self) -> int:
        """Return the number of positions in it."""
        keys = self.layers[0].keys if self.layers else None
        return 0 if keys is None else keys.shape[2]

    def keep(self, number: int, new: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values [B, L, 2 G, E] of a block, see `Keep`."""
        layer, (keys, values) = self.layers[number], _heads_first(new)
        if layer.keys is not None:
            keys, values = torch.cat([layer.keys, keys], dim=2), torch.cat([layer.values, values], dim=2)
        layer.keys, layer.values = keys, values
        return keys, values

    def reorder_cache(self, rows: Tensor) -> None:
        """Keep the rows named [B'], perhaps one of them twice."""
        self._change(lambda kept: kept.index_select(0, rows.to(kept.device)))

    def crop(self, length: int) -> None:
        """Keep the first `length` positions; of a negative number, forget so many of the last."""
        self._change(lambda kept: kept[:, :, :length])

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        for layer in self.layers:
            if layer.keys is not None:
                layer.keys, layer.values = change(layer.keys), change(layer.values)


class LayerKeyValues:
    """Keys and values of a block [B, G, C, E]; None before the first position."""

    joins = True  # see `omnikit.kv_cache`

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None


def _heads_first(new: Tensor) -> tuple[Tensor, Tensor]:
    """Split new keys and values [B, L, 2 G, E] into keys and values [B, G, L, E] each."""
    keys, values = new.transpose(1, 2).chunk(2, dim=1)
    return keys, values


class RMSNorm(nn.Module):
    """Root mean square norm with a learned scale, see `normed`."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return normed(x, self)


class Rotary(nn.Module):
    """Angles of the rotary positions, see `rotary_rates`."""

    def __init__(self, numbers: LlamaConfig):
        super().__init__()
        rates = empty_on_meta((numbers.head_dim // 2,), lambda: rotary_rates(numbers))
        self.register_buffer("inv_freq", rates, persistent=False)
        self.attention_scaling = rotary_scaling(numbers)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [B, L] -> cosine and sine [B, L, E] in the type of x."""
        angles = positions[..., None].float() * self.inv_freq.float()
        angles = torch.cat([angles, angles], dim=-1)
        return tuple((table * self.attention_scaling).to(x.dtype) for table in (angles.cos(), angles.sin()))


class Attention(nn.Module):
    """Weights of a block's attention, which `Block` computes."""

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
    """Weights of one block, which `Block` computes."""

    def __init__(self, numbers: LlamaConfig):
        super().__init__()
        self.self_attn, self.mlp = Attention(numbers), MLP(numbers)
        self.input_layernorm = RMSNorm(numbers.hidden_size, numbers.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(numbers.hidden_size, numbers.rms_norm_eps)


class Trunk(nn.Module):
    """A backbone without its head, for inference: weights are to be read from a file.

    Args:
        numbers: of the backbone.
        embeds: whether it has a table of embeddings.
    """

    def __init__(self, numbers: LlamaConfig, *, embeds: bool = True):
        super().__init__()
        self.config = numbers
        self.embed_tokens = nn.Embedding(numbers.vocab_size, numbers.hidden_size) if embeds else nn.Identity()
        self.layers = nn.ModuleList(Layer(numbers) for _ in range(numbers.num_hidden_layers))
        self.norm: nn.Module = RMSNorm(numbers.hidden_size, numbers.rms_norm_eps)
        self.rotary_emb = Rotary(numbers)

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of embeddings."""
        return self.embed_tokens

    def forward(
        self, embeddings: Tensor, positions: Tensor, mask: Tensor | None = None, cache: KeyValues | None = None
    ) -> Tensor:
        """Embeddings [B, L, D] -> hidden states [B, L, D] behind `norm`; see `omnikit.interfaces.Backbone.forward`."""
        before = 0 if cache is None else cache.get_seq_length()
        columns = before + embeddings.shape[1]
        blocks, x = blocks_of(self), embeddings
        turn = turns(positions, self.rotary_emb, self.config, x.dtype)
        places = torch.arange(before, columns, device=x.device)[None]
        bias = {window: scores(places, columns, window, x.dtype, mask) for window in set(self.config.windows)}
        keep: Any = (lambda _, new: _heads_first(new)) if cache is None else cache.keep
        for block in blocks:
            x = block(x, turn, bias, keep)
        return self.norm(x)
