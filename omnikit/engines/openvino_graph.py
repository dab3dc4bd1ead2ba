"""Construction of OpenVINO graphs for backbones of Llama's kind, operation by operation, from their torch weights.

Letters: B sequences, L new positions, C positions including earlier ones, D width, H heads, G heads of keys and values,
E width of a head, V ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
import torch
from openvino import opset15 as op
from openvino.op.util import Variable, VariableInfo
from torch import Tensor, nn

from omnikit.llms.llama_config import LlamaConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Node = ov.Output
F32, BF16, INT8 = WEIGHTS = ("f32", "bf16", "int8")
"""Storage types of the weight matrices in an OpenVINO graph."""
WEIGHT_BYTES = {F32: 4, BF16: 2, INT8: 1}
"""Bytes per weight of each storage type in an OpenVINO graph."""


def attention_window(config: Any) -> int | None:
    """Return the number of positions that each position attends to, itself included; None = all before it.

    Args:
        config: configuration of a backbone that `omnikit.llms.llama.supports`.

    Raises:
        ValueError: the backbone's blocks have different windows.
    """
    windows = set(LlamaConfig.of(config).windows)
    if len(windows) > 1:
        kind = config.model_type
        raise ValueError(f"engine openvino: cannot run this {kind}: some of its blocks attend within a window")
    return next(iter(windows))


class GraphBuilder:
    """A builder of OpenVINO graphs whose matrices are stored in one of the types of `WEIGHTS`."""

    def __init__(self, weights: str = INT8):
        self.weights = weights
        self.states: list[Variable] = []
        self.sinks: list[ov.Node] = []

    def trunk(self, stacks: list[tuple[nn.Module, Tensor]]) -> ov.Model:
        """Build the graph of a backbone's blocks, followed by those of its TTS adapter if there is one.

        Args:
            stacks: trunk (of `omnikit.llms.llama` or transformers) and final norm weight [D] of each.

        Returns:
            A graph whose state is the KV cache. Inputs: `x` [B, L, D], `positions` [B, L], `mask` [B, 1, L, C] (added
            to the attention scores) and `rows` [B], the row of the state that each sequence continues. Outputs: the
            normed hidden states [B, L, D] of each trunk.
        """
        dim = stacks[0][1].shape[0]
        x = op.parameter([-1, -1, dim], np.float32, name="x")
        positions = op.parameter([-1, -1], np.int64, name="positions")
        mask = op.parameter([-1, 1, -1, -1], np.float32, name="mask")
        rows = op.parameter([-1], np.int32, name="rows")
        hidden, outputs = x.output(0), []
        for trunk, norm in stacks:
            config = trunk.config
            turn = _rotary(trunk, positions)
            for layer in trunk.layers:
                hidden = self._block(layer, config, hidden, turn, mask, rows)
            outputs.append(_rms(hidden, norm, config.rms_norm_eps))
        results = [op.result(out, name=f"hidden{n}") for n, out in enumerate(outputs)]
        return ov.Model(results, self.sinks, [x, positions, mask, rows], self.states, "trunk")

    def head(self, tables: list[Tensor]) -> ov.Model:
        """Build the graph of a head from weight matrices [V_i, D]: `hidden` [B, D] -> `logits` [B, sum of V_i]."""
        hidden = op.parameter([-1, tables[0].shape[1]], np.float32, name="hidden")
        logits = op.matmul(hidden, self._stored(torch.cat(tables)), False, True).output(0)
        return ov.Model([op.result(logits, name="logits")], [hidden], "head")

    def _block(
        self, layer: nn.Module, config: PretrainedConfig, x: Node, turn: Callable, mask: ov.Node, rows: ov.Node
    ) -> Node:
        normed = _rms(x, layer.input_layernorm.weight, config.rms_norm_eps)
        x = op.add(x, self._attend(layer.self_attn, config, normed, turn, mask, rows)).output(0)
        normed = _rms(x, layer.post_attention_layernorm.weight, config.rms_norm_eps)
        gate, up = op.split(self._linear(normed, layer.mlp.gate_proj, layer.mlp.up_proj), 2, 2).outputs()
        return op.add(x, self._linear(op.multiply(op.swish(gate), up).output(0), layer.mlp.down_proj)).output(0)

    def _attend(
        self, attention: nn.Module, config: PretrainedConfig, x: Node, turn: Callable, mask: ov.Node, rows: ov.Node
    ) -> Node:
        heads, groups, width = config.num_attention_heads, config.num_key_value_heads, attention.head_dim
        joint = self._linear(x, attention.q_proj, attention.k_proj, attention.v_proj)
        joint = op.transpose(op.reshape(joint, [0, 0, heads + 2 * groups, width], True), [0, 2, 1, 3])
        if getattr(attention, "q_norm", None) is not None:
            query, key, value = op.variadic_split(joint, 1, [heads, groups, groups]).outputs()
            query = _rms(query, attention.q_norm.weight, config.rms_norm_eps)
            key = _rms(key, attention.k_norm.weight, config.rms_norm_eps)
            turned = turn(op.concat([query, key], 1).output(0))
        else:
            turned, value = op.variadic_split(joint, 1, [heads + groups, groups]).outputs()
            turned = turn(turned)
        query, key = op.variadic_split(turned, 1, [heads, groups]).outputs()
        key, value = self._cached(key, rows, groups, width), self._cached(value, rows, groups, width)
        key, value = _for_each_head(key, heads, groups, width), _for_each_head(value, heads, groups, width)
        found = op.scaled_dot_product_attention(query, key, value, mask, causal=False)  # [B, H, L, E]
        joined = op.reshape(op.transpose(found, [0, 2, 1, 3]), [0, 0, heads * width], True)
        return self._linear(joined.output(0), attention.o_proj)

    def _cached(self, new: Node, rows: ov.Node, groups: int, width: int) -> Node:
        """Append new keys or values [B, G, L, E] to the state of the graph; return all of them [B, G, C, E].

        On CPUs OpenVINO fuses state, gather, concatenation and attention to one operation, which appends in place and
        follows `rows` through a table instead of moving keys and values.
        """
        info = VariableInfo()
        info.data_shape, info.data_type = ov.PartialShape([-1, groups, -1, width]), ov.Type.f32
        info.variable_id = f"kept{len(self.states)}"
        variable = Variable(info)
        batch = op.gather(op.shape_of(new, "i64"), [0], 0)
        empty = op.broadcast(np.float32(0), op.concat([batch, op.constant([groups, 0, width], np.int64)], 0))
        before = op.gather(op.read_value(empty, variable), rows, op.constant(0))
        joined = op.concat([before, new], 2)
        self.states.append(variable)
        self.sinks.append(op.assign(joined, variable))
        return joined.output(0)

    def _linear(self, x: Node, *layers: nn.Linear) -> Node:
        """Return the outputs of several linear layers with the same input side by side, computed by one product."""
        y = op.matmul(x, self._stored(torch.cat([_weight(layer) for layer in layers])), False, True).output(0)
        if layers[0].bias is None:
            return y
        return op.add(y, _constant(torch.cat([layer.bias for layer in layers]))).output(0)

    def _stored(self, weight: Tensor) -> Node:
        """Return an OpenVINO node that yields a weight matrix [out, in] as f32 from its storage type."""
        if self.weights == F32:
            return _constant(weight)
        if self.weights == BF16:
            return op.convert(op.constant(_constant(weight).node.data, ov.Type.bf16), "f32").output(0)
        scale = weight.detach().float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        whole = (weight.detach().float() / scale).round().to(torch.int8)
        return op.multiply(op.convert(op.constant(whole.numpy()), "f32"), op.constant(scale.numpy())).output(0)


def _weight(layer: nn.Module) -> Tensor:
    """Return the weight matrix [out, in] of a linear layer, with its low-rank update if it has LoRA."""
    if not hasattr(layer, "get_delta_weight"):
        return layer.weight
    return layer.weight + sum(layer.get_delta_weight(name) for name in layer.active_adapters)


def _constant(tensor: Tensor) -> Node:
    return op.constant(tensor.detach().float().numpy()).output(0)


def _for_each_head(cached: Node, heads: int, groups: int, width: int) -> Node:
    """Repeat keys or values [B, G, C, E] for each query head -> [B, H, C, E].

    OpenVINO recognises these three operations and copies nothing.
    """
    if heads == groups:
        return cached
    repeats = op.constant(np.array([1, 1, heads // groups, 1, 1], np.int64))
    repeated = op.broadcast(op.unsqueeze(cached, op.constant(2)), repeats, broadcast_spec="BIDIRECTIONAL")
    return op.reshape(repeated, [0, heads, -1, width], True).output(0)


def _rms(x: Node, weight: Tensor, eps: float) -> Node:
    mean = op.reduce_mean(op.power(x, np.float32(2)), op.constant([-1]), True)
    scaled = op.multiply(x, op.divide(np.float32(1), op.sqrt(op.add(mean, np.float32(eps)))))
    return op.multiply(scaled, _constant(weight)).output(0)


def _rotary(trunk: nn.Module, positions: ov.Node) -> Callable[[Node], Node]:
    """Return a function that applies rotary positions to heads [B, heads, L, E], pairing the halves of each head."""
    rates = _constant(trunk.rotary_emb.inv_freq[None, None])
    angle = op.multiply(op.unsqueeze(op.convert(positions, "f32"), 2), rates)
    angle = op.unsqueeze(op.concat([angle, angle], -1), 1)
    scaling = np.float32(trunk.rotary_emb.attention_scaling)
    cos, sin = op.multiply(op.cos(angle), scaling), op.multiply(op.sin(angle), scaling)

    def turn(x: Node) -> Node:
        half = x.get_partial_shape()[3].get_length() // 2
        # with `variadic_split` OpenVINO would fuse all of this, which makes a decode step 6 % slower on CPUs
        first = op.slice(x, [0], [half], [1], [3])
        second = op.slice(x, [half], [2 * half], [1], [3])
        swapped = op.concat([op.multiply(second, np.float32(-1)), first], 3)
        return op.add(op.multiply(x, cos), op.multiply(swapped, sin)).output(0)

    return turn
