"""The numbers that a backbone is built from: given, read from a published folder, or made tiny."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from omnikit.errors import one_line
from omnikit.hub import CONFIG, hub_file, is_hub_id
from omnikit.llms.baichuan import BAICHUAN, llama_numbers
from omnikit.llms.llama_config import LlamaConfig, supports
from omnikit.part_sizes import sized
from omnikit.size_limits import check_counts
from omnikit.untrusted_files import read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_HEAD_DIM = 8
_TINY = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": _HEAD_DIM, "query_pre_attn_scalar": _HEAD_DIM, "sliding_window": 8, "moe_intermediate_size": 16,
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
"""Those of them that a class has."""
_TINY_LAYERS = 2
_TINY_ROTARY = 0.5  # of a head, where only a part of it turns: an even number of `_HEAD_DIM`
_EITHER = (None, "sdpa", "eager")
"""Implementations of attention that compute the same, and so what `omnikit.llms.llama` computes."""
_NOT_NUMBERS = ("architectures", "auto_map", "transformers_version", "torch_dtype", "dtype")


def published_numbers(path: str | None, model_type: str) -> dict[str, Any]:
    """The numbers that stand in a published model's `config.json`, for part files:
    `config: !applyref:omnikit.llms.configs.published_numbers {path: !ref <weights>, model_type: llama}`.

    Args:
        path: a folder or a hub id; `None`: the numbers are transformers' own defaults of `model_type`.
        model_type: see `path`.

    Raises:
        ValueError: no `config.json` there, or it is not readable.
    """
    if path is None:
        return {"model_type": model_type}
    numbers = read_numbers(path)
    if numbers.get("model_type") == BAICHUAN:
        return llama_numbers(numbers, path)
    return _without_places(numbers)


def _without_places(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a configuration without names of files and hubs, which a checkpoint may not have."""
    kept = {
        key: _without_places(value) if isinstance(value, Mapping) else value
        for key, value in numbers.items()
        if key not in _NOT_NUMBERS and not key.startswith("_")
    }
    return {key: value for key, value in kept.items() if not (isinstance(value, str) and {"/", "\\"} & set(value))}


def read_numbers(path: str) -> dict[str, Any]:
    """A folder's or hub id's `config.json` as it is."""
    file = hub_file(path, CONFIG) if is_hub_id(path) else Path(path) / CONFIG
    if not file.is_file():
        raise ValueError(f"llm.weights {path}: no {CONFIG} there, so no model as transformers writes it")
    try:
        numbers = read_json(file)
    except ValueError as error:
        raise ValueError(f"llm.weights {error}") from None
    if not isinstance(numbers, dict) or "model_type" not in numbers:
        raise ValueError(f"llm.weights {file}: names no model_type")
    return numbers


def make_config(
    numbers: Mapping[str, Any], *, vocab_size: int, size: str, attention: str | None, light: bool = False
) -> PretrainedConfig | LlamaConfig:
    """transformers' configuration from its `model_type` and numbers.

    Args:
        numbers: what is missing has the class's default.
        vocab_size: of the tokenizer, taken where `numbers` has none and in the size `tiny`.
        size: see `omnikit.part_sizes`.
        attention: transformers' attention implementation; `None` = the best that the class has.
        light: make `LlamaConfig` in place of it wherever `omnikit.llms.llama` computes such a backbone.

    Raises:
        ValueError: a `model_type` that transformers does not know, or numbers that it refuses.
    """
    check_counts("llm.config", numbers)
    numbers = {"vocab_size": vocab_size, **numbers}
    make = LlamaConfig.of if light and attention in _EITHER and supports(numbers) is None else _config
    config = make(sized(numbers, _tiny(make(numbers), numbers) | {"vocab_size": vocab_size}, size))
    _check_heads(config)
    if isinstance(config, LlamaConfig):
        return config
    config._attn_implementation = attention
    config.dtype = torch.float32
    config.pad_token_id = None  # transformers would keep this row from training; padding has ids of its own here
    return config


def _check_heads(config: PretrainedConfig | LlamaConfig) -> None:
    """Refuse heads that the width or the rotary positions cannot be shared among, which shows at the first step only.

    Raises:
        ValueError: the message names the numbers.
    """
    width, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    if not width or not isinstance(heads, int):  # classes without attention, or with other heads in each layer
        return
    groups = getattr(config, "num_key_value_heads", None) or heads
    if heads % groups:
        raise ValueError(f"--llm.config.num_attention_heads {heads}: must be a multiple of {groups}, its key/values")
    size = getattr(config, "head_dim", None)
    if size is None and width % heads:
        raise ValueError(f"--llm.config.num_attention_heads {heads}: must divide the hidden_size {width}")
    rope = getattr(config, "rope_parameters", None)
    size = size or width // heads
    if isinstance(rope, Mapping) and "partial_rotary_factor" not in rope and size % 2:
        raise ValueError(f"--llm.config.num_attention_heads {heads}: makes heads {size} wide; this must be even")


def with_layers(config: PretrainedConfig | LlamaConfig, n: int) -> PretrainedConfig | LlamaConfig:
    """A copy for `n` layers; what a configuration lists layer by layer is repeated or cut."""
    listed = {name: value for name, value in config.to_dict().items() if _per_layer(value, config)}
    config = copy.deepcopy(config)
    for name, value in listed.items():
        setattr(config, name, (value * n)[:n])
    config.num_hidden_layers = n
    return config


def _per_layer(value: Any, config: PretrainedConfig | LlamaConfig) -> bool:
    return isinstance(value, list) and len(value) == config.num_hidden_layers


def _config(numbers: Mapping[str, Any]) -> PretrainedConfig:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = numbers.get("model_type")
    if kind is None:
        raise ValueError("llm.config: model_type is missing (qwen2, llama, ..)")
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind not in known:
        close = difflib.get_close_matches(str(kind), known, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        version = f"transformers {transformers.__version__}"
        raise ValueError(f"llm.config.model_type {kind!r}: {version} has no such causal language model{meant}")
    try:
        return transformers.AutoConfig.for_model(**numbers)
    except Exception as error:  # each class checks in its own way
        raise ValueError(f"llm.config: {one_line(error)}") from None


def _tiny(config: PretrainedConfig | LlamaConfig, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Few and narrow layers of a configuration's class, one at least of each kind of layer that it has."""
    listed = config.to_dict()
    kinds = list(dict.fromkeys(listed.get("layer_types") or ()))
    layers = max(_TINY_LAYERS, len(kinds))
    known = {*listed, *getattr(config, "attribute_map", ())}
    tiny = {name: small for name, small in _TINY.items() if name in known}
    if listed.get("sliding_window") is None:
        tiny.pop("sliding_window", None)
    tiny |= {name: None for name, value in numbers.items() if _per_layer(value, config)}
    tiny["num_hidden_layers"] = layers
    if kinds:
        tiny["layer_types"] = (kinds * layers)[:layers]
    if listed.get("rope_parameters") is not None:
        tiny |= {"rope_parameters": _tiny_rope(config.rope_parameters), "rope_scaling": None}
    return tiny


def _tiny_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Where a part of each head turns, half of it; a list has a number for each pair of turning dimensions."""
    part = _TINY_ROTARY if rope.get("partial_rotary_factor", 1.0) < 1.0 else 1.0
    tiny = dict(rope)
    for name, value in rope.items():
        if isinstance(value, Mapping):
            tiny[name] = _tiny_rope(value)
        elif isinstance(value, list):
            tiny[name] = value[: int(_HEAD_DIM * part) // 2]
        elif name == "partial_rotary_factor":
            tiny[name] = part
    return tiny
