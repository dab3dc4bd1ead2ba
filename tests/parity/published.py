"""Slow, obvious implementation of the published Mini-Omni network, with loops over attention heads and positions.

Weights have their published names. Shape letters: L positions, D width, V ids.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnikit.convert.mini_omni_names import published_shapes, read_sizes


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the deterministic value of one weight tensor, by the rule behind the stored reference outputs."""
    x = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF).standard_normal(int(np.prod(shape)))
    x = x.astype(np.float32).reshape(shape)
    if len(shape) == 1:
        return torch.tensor(1 + 0.1 * x if any(word in name for word in ("norm", "ln_f", "audio_ln")) else 0.1 * x)
    return torch.tensor(x if "wte" in name else x * 2 / np.sqrt(shape[1])).float()


def weights(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return all weights of a Mini-Omni configuration, by the rule behind the stored reference outputs."""
    return {name: fill(name, shape) for name, shape in published_shapes(read_sizes(config)).items()}


def forward(w: Mapping[str, Tensor], c: Mapping[str, Any], prompt: Tensor, encoded: Tensor | None = None):
    """Compute the audio logits [7, L, V_a] and the text logits [L, V_t] of a prompt with the published network.

    Args:
        w: weights by their published names.
        c: the published configuration.
        prompt: ids [8, L] in the shared vocabulary.
        encoded: features [T, D_in] of speech that stand in the audio streams from position 1 on; None = no speech.
    """
    rows = w["transformer.wte.weight"][prompt]
    if encoded is not None:
        rows[:-1, 1 : 1 + len(encoded)] = adapt(w, c, encoded)
    x = rows.mean(dim=0)
    for n in range(c["n_layer"]):
        x = block(w, c, f"transformer.h.{n}", x)
    logits = rms(x, w["transformer.ln_f.weight"], c["norm_eps"]) @ w["lm_head.weight"].T
    text, audio = logits[:, : c["text_vocab_size"]], logits[:, c["text_vocab_size"] :]
    if c["post_adapter"]:
        for n in range(c["post_adapter_layers"]):
            x = block(w, c, f"transformer.post_adapter.{n}", x)
        x = rms(x, w["transformer.post_adapter_audio_ln.weight"], c["norm_eps"])
        audio = x @ w["transformer.post_adapter_audio_lm_head.weight"].T
    layers = c["cat_audio_vocab_size"] // c["audio_vocab_size"]
    return audio[:, : c["cat_audio_vocab_size"]].unflatten(1, (layers, -1)).transpose(0, 1), text


def adapt(w: Mapping[str, Tensor], c: Mapping[str, Any], features: Tensor) -> Tensor:
    if c["asr_adapter"] == "mlp":
        return features @ w["whisper_adapter.weight"].T + w["whisper_adapter.bias"]
    return gated(w, "whisper_adapter", features)


def gated(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    a, b = x @ w[f"{name}.fc_1.weight"].T, x @ w[f"{name}.fc_2.weight"].T
    return (a * torch.sigmoid(a) * b) @ w[f"{name}.proj.weight"].T


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight


def block(w: Mapping[str, Tensor], c: Mapping[str, Any], name: str, x: Tensor) -> Tensor:
    x = x + attention(w, c, f"{name}.attn", rms(x, w[f"{name}.norm_1.weight"], c["norm_eps"]))
    return x + gated(w, f"{name}.mlp", rms(x, w[f"{name}.norm_2.weight"], c["norm_eps"]))


def attention(w: Mapping[str, Tensor], c: Mapping[str, Any], name: str, x: Tensor) -> Tensor:
    joint = x @ w[f"{name}.attn.weight"].T + w.get(f"{name}.attn.bias", 0)
    heads = list(joint.split(c["head_size"], dim=1))
    found, per_group = [], c["n_head"] // c["n_query_groups"]
    for _ in range(c["n_query_groups"]):
        queries = [heads.pop(0) for _ in range(per_group)]
        key, value = heads.pop(0), heads.pop(0)
        found += [attend(turned(query, c), turned(key, c), value) for query in queries]
    return torch.cat(found, dim=1) @ w[f"{name}.proj.weight"].T


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    rows = []
    for position in range(len(query)):
        scores = key[: position + 1] @ query[position] / query.shape[1] ** 0.5
        rows.append(scores.softmax(dim=0) @ value[: position + 1])
    return torch.stack(rows)


def turned(x: Tensor, c: Mapping[str, Any]) -> Tensor:
    """Apply rotary position embedding: the pair (i, i + half) of a head is rotated by position / base^(i / half)."""
    half = c["head_size"] // 2
    angle = torch.arange(len(x))[:, None] / c["rope_base"] ** (torch.arange(half) / half)
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=1)
