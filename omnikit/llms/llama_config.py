"""Configuration of backbones of Llama's kind, read from a plain mapping or from a configuration of transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

QWEN2, QWEN3, LLAMA, MISTRAL = KINDS = ("qwen2", "qwen3", "llama", "mistral")
"""Model types of transformers that `omnikit.llms.llama` supports; SmolLM2 and Vicuna have the type llama."""
SILU = "silu"
FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of attention in `layer_types`: over all earlier positions, or over those in a window."""

_SHARED = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "head_dim": None, "hidden_act": SILU,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_parameters": None,
}  # fmt: skip
_QWEN = {
    **_SHARED, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
    "max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
    "layer_types": None,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    QWEN2: _QWEN,
    QWEN3: {**_QWEN, "head_dim": 128, "attention_bias": False},
    LLAMA: {
        **_SHARED, "vocab_size": 32000, "intermediate_size": 11008, "num_key_value_heads": None,
        "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False,
    },
    MISTRAL: {
        **_SHARED, "vocab_size": 32000, "intermediate_size": 14336, "num_key_value_heads": 8,
        "max_position_embeddings": 131072, "sliding_window": 4096,
    },
}  # fmt: skip
"""Mapping from model type to the defaults of its configuration, equal to those of transformers' classes."""
_WITHOUT_EFFECT = {
    "model_type", "rope_theta", "rope_scaling", "initializer_range", "use_cache", "attention_dropout", "pretraining_tp",
    "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip
"""Further configuration entries that are accepted: those that `_rope` reads, and those without effect on inference."""
_FOREIGN = ("logit_scale", "logits_scaling", "final_logit_softcapping", "layer_types", "sliding_window")
"""Configuration entries that make transformers' classes compute something that is not supported here."""
_WHOLE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window", "max_window_layers",
)  # fmt: skip
_OPTIONAL = ("num_key_value_heads", "head_dim", "sliding_window")
_LEAST = {"max_window_layers": 0}
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")

DEFAULT, LINEAR, LLAMA3, YARN = "default", "linear", "llama3", "yarn"
_ROPE_NEEDS = {
    DEFAULT: (),
    LINEAR: ("factor",),
    LLAMA3: ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    YARN: ("factor", "original_max_position_embeddings"),
}
"""Mapping from type of rotary positions to the parameters that it requires."""
_ROPE_MAY = {YARN: ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")}
_THETA = 10_000.0


@dataclass
class LlamaConfig:
    """Configuration of a backbone of Llama's kind, whose entries have the names that they have in transformers."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    hidden_act: str
    tie_word_embeddings: bool
    rope_parameters: dict[str, Any]
    sliding_window: int | None
    layer_types: list[str] | None  # kind of attention of each block; None = one kind in all of them
    qkv_bias: bool
    output_bias: bool  # of the attention's output projection
    mlp_bias: bool

    @classmethod
    def of(cls, config: Any) -> LlamaConfig:
        """Read the configuration of a backbone from a mapping or a configuration of transformers, and check it.

        Args:
            config: content of a `config.json`, a configuration of transformers, or a `LlamaConfig`.

        Raises:
            ValueError: a backbone that is not supported here; the message is the reason in one line.
        """
        if isinstance(config, LlamaConfig):
            return config
        numbers = config if isinstance(config, Mapping) else _of_class(config)
        kind = numbers.get("model_type")
        if kind not in KINDS:
            raise ValueError(f"it is none of {', '.join(KINDS)}")
        known = {**DEFAULTS[kind], **{name: value for name, value in numbers.items() if name in DEFAULTS[kind]}}
        other = [
            name for name, value in numbers.items()
            if name not in DEFAULTS[kind] and (name not in _WITHOUT_EFFECT and value is not None)
        ]  # fmt: skip
        if other:
            raise ValueError(f"{other[0]} {numbers[other[0]]!r} is not known here")
        _check(kind, known)
        return cls._from_mapping(kind, known, _rope(numbers, known["max_position_embeddings"]))

    @classmethod
    def _from_mapping(cls, kind: str, known: Mapping[str, Any], rope: dict[str, Any]) -> LlamaConfig:
        heads, attention_bias = known["num_attention_heads"], known.get("attention_bias", False)
        window = known.get("sliding_window") if known.get("use_sliding_window", True) else None
        size = known["head_dim"] or known["hidden_size"] // heads
        same = {name: known[name] for name in cls.__dataclass_fields__ if name in known}
        return cls(**{
            **same, "model_type": kind, "num_key_value_heads": known["num_key_value_heads"] or heads, "head_dim": size,
            "rope_parameters": rope, "sliding_window": window, "layer_types": _layer_types(known, window),
            "qkv_bias": kind == QWEN2 or attention_bias, "output_bias": attention_bias,
            "mlp_bias": known.get("mlp_bias", False),
        })  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of this configuration as a dictionary."""
        return asdict(self)

    @property
    def windows(self) -> list[int | None]:
        """Number of positions that each block attends to, the new one included; None = all earlier ones, too."""
        kinds = self.layer_types or [SLIDING] * self.num_hidden_layers
        return [self.sliding_window if kind == SLIDING else None for kind in kinds]


def supports(config: Any) -> str | None:
    """Return the reason in one line why `omnikit.llms.llama` cannot compute a backbone, or None if it can.

    Args:
        config: configuration of the backbone, see `LlamaConfig.of`.
    """
    try:
        LlamaConfig.of(config)
    except ValueError as error:
        return str(error)
    return None


def rotary_rates(numbers: LlamaConfig) -> Tensor:
    """Return the rotary angle per position of each pair of dimensions [E / 2] (Su et al. 2021, arXiv 2104.09864).

    `linear` and `llama3` stretch the angles as Llama 3.1 does (Dubey et al. 2024, arXiv 2407.21783), `yarn` as in Peng
    et al. 2023, arXiv 2309.00071, section 3. Operations have the same order as in transformers: at distant positions
    the last bit counts.
    """
    rope, size = numbers.rope_parameters, numbers.head_dim
    lengths = rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float) / size)
    rates, kind = 1.0 / lengths, rope["rope_type"]
    if kind == LINEAR:
        return rates / rope["factor"]
    if kind == LLAMA3:
        turns = rope["original_max_position_embeddings"] / (2 * math.pi / rates)  # within the original context
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        fast = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - fast) * rates / rope["factor"] + fast * rates
    if kind == YARN:
        fast = 1 - _yarn_ramp(rope, size)
        return 1.0 / (rope["factor"] * lengths) * (1 - fast) + rates * fast
    return rates


def rotary_scaling(numbers: LlamaConfig) -> float:
    """Return the factor of the cosines and sines of rotary positions: that of YaRN, or 1 for other types."""
    rope = numbers.rope_parameters
    return _yarn_scaling(rope) if rope["rope_type"] == YARN else 1.0


def _yarn_ramp(rope: Mapping[str, Any], size: int) -> Tensor:
    """Return the share of interpolation, 0 to 1, of each pair of a head's dimensions [E / 2] under YaRN."""

    def pair(turns: float) -> float:
        """Return the index of the pair of dimensions that makes `turns` full turns within the original context."""
        context, theta = rope["original_max_position_embeddings"], rope["rope_theta"]
        return (size * math.log(context / (turns * 2 * math.pi))) / (2 * math.log(theta))

    first, last = pair(rope.get("beta_fast") or 32), pair(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    if first == last:
        last += 0.001
    return ((torch.arange(size // 2, dtype=torch.float) - first) / (last - first)).clamp(0, 1)


def _yarn_scaling(rope: Mapping[str, Any]) -> float:
    def scale(of: float) -> float:
        return 1.0 if rope["factor"] <= 1 else 0.1 * of * math.log(rope["factor"]) + 1.0

    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    return scale(1.0)


def _of_class(config: Any) -> dict[str, Any]:
    """Return the entries of a transformers configuration that its model type has or that change what it computes."""
    kind = getattr(config, "model_type", None)
    names = ("model_type", *DEFAULTS.get(kind, ()), *_FOREIGN)
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def _check(kind: str, numbers: Mapping[str, Any]) -> None:
    """Check the values of a configuration; transformers explains its own requirements where it refuses one.

    Raises:
        ValueError: an unsupported value; the message names it.
    """
    for name, value in numbers.items():
        if name in _WHOLE:
            fine = name in _OPTIONAL if value is None else type(value) is int and value >= _LEAST.get(name, 1)
        elif name in _FLAGS:
            fine = type(value) is bool
        elif name == "rms_norm_eps":
            fine = type(value) is float and 0 <= value < math.inf
        else:
            fine = name != "hidden_act" or value == SILU
        if not fine:
            raise ValueError(f"{name} {value!r} is not known here")
    heads = numbers["num_attention_heads"]
    whole = numbers["hidden_size"] % heads == 0 or (kind != LLAMA and numbers["head_dim"] is not None)
    if not whole or heads % (numbers["num_key_value_heads"] or heads):
        raise ValueError(f"num_attention_heads {heads} does not divide its width, or is no multiple of its key heads")


def _layer_types(numbers: Mapping[str, Any], window: int | None) -> list[str] | None:
    """Return the kind of attention of each block, or None if the model type has only one kind."""
    if "layer_types" not in numbers:
        return None
    kinds, layers = numbers["layer_types"], numbers["num_hidden_layers"]
    if kinds is None:
        full = layers if window is None else min(layers, numbers["max_window_layers"])
        return [FULL] * full + [SLIDING] * (layers - full)
    allowed = {FULL} if window is None else {FULL, SLIDING}
    if not isinstance(kinds, list | tuple) or len(kinds) != layers or not all(kind in allowed for kind in kinds):
        raise ValueError(f"layer_types {kinds!r} is not known here")
    return list(kinds)


def _rope(numbers: Mapping[str, Any], context: int) -> dict[str, Any]:
    """Return the rotary parameters under their current names: `rope_type`, `rope_theta`, and those of the type.

    Raises:
        ValueError: an unsupported type or parameter; the message names it.
    """
    found = numbers.get("rope_scaling") or numbers.get("rope_parameters") or {}
    if not isinstance(found, Mapping):
        raise ValueError("rope_parameters is no mapping")
    rope = {"rope_theta": numbers.get("rope_theta", _THETA), "rope_type": found.get("type", DEFAULT), **found}
    kind = rope["rope_type"]
    if not isinstance(kind, str) or kind not in _ROPE_NEEDS:
        raise ValueError(f"{kind} rotary positions are not known here")
    if kind in (LLAMA3, YARN):
        rope.setdefault("original_max_position_embeddings", context)
    needs, may = _ROPE_NEEDS[kind], _ROPE_MAY.get(kind, ())
    given = {name: value for name, value in rope.items() if name not in ("rope_type", "type")}
    if given.pop("partial_rotary_factor", None) not in (None, 1.0):
        raise ValueError("rotary positions of a part of each head are not known here")
    for name in sorted(given.keys() | set(needs)):
        value, needed = given.get(name), name in ("rope_theta", *needs)
        optional = name in may and (value is None or type(value) is bool)
        if not optional and not (type(value) in (int, float) and 0 < value < math.inf and (needed or name in may)):
            raise ValueError(f"{kind} rotary positions with {name} {value!r} are not known here")
    if rope["rope_theta"] <= 1 or (kind == LLAMA3 and rope["low_freq_factor"] >= rope["high_freq_factor"]):
        raise ValueError(f"{kind} rotary positions with such factors are not known here")
    return rope
