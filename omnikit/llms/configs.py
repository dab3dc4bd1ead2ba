"""Configurations of backbones: given in a recipe, read from a published folder, or reduced to a tiny size."""

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
"""Configuration entries of a tiny backbone; each replaces the one of the same name in a configuration that has it."""
_TINY_LAYERS = 2
_TINY_ROTARY = 0.5  # share of a head with rotary positions, if not all of it: an even number of `_HEAD_DIM`
_EITHER = (None, "sdpa", "eager")
"""Attention implementations that compute the same as `omnikit.llms.llama`, so that it may replace them."""
_NOT_NUMBERS = ("architectures", "auto_map", "transformers_version", "torch_dtype", "dtype")


def published_numbers(path: str | None, model_type: str) -> dict[str, Any]:
    """Return the entries of a published model's `config.json`, for part files.

    Used as `config: !applyref:omnikit.llms.configs.published_numbers {path: !ref <weights>, model_type: llama}`.

    Args:
        path: folder or hub id of the model; None = the defaults of transformers.
        model_type: transformers' model type whose defaults are used if `path` is None.

    Raises:
        ValueError: there is no `config.json`, or it is not readable.
    """
    if path is None:
        return {"model_type": model_type}
    numbers = read_numbers(path)
    if numbers.get("model_type") == BAICHUAN:
        return llama_numbers(numbers, path)
    return _without_places(numbers)


def _without_places(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a configuration without file names and hub ids, which a checkpoint must not contain."""
    kept = {
        key: _without_places(value) if isinstance(value, Mapping) else value
        for key, value in numbers.items()
        if key not in _NOT_NUMBERS and not key.startswith("_")
    }
    return {key: value for key, value in kept.items() if not (isinstance(value, str) and {"/", "\\"} & set(value))}


def read_numbers(path: str) -> dict[str, Any]:
    """Return the content of the `config.json` in a folder or under a hub id.

    Raises:
        ValueError: there is no such file, it is not readable, or it names no `model_type`.
    """
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
    """Return the configuration of a backbone, of transformers' class for its `model_type`, or a `LlamaConfig`.

    Args:
        numbers: `model_type` and numbers; missing ones are the defaults of the class.
        vocab_size: vocabulary of the tokenizer; used if `numbers` has none, and in the size `tiny`.
        size: name of a size, see `omnikit.part_sizes`.
        attention: attention implementation of transformers; None = the best that the class has.
        light: return a `LlamaConfig` for each backbone that `omnikit.llms.llama` supports.

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
    config.pad_token_id = None  # transformers would not train its embedding; padding has ids of its own here
    return config


def _check_heads(config: PretrainedConfig | LlamaConfig) -> None:
    """Check that attention heads fit the width and rotary positions; otherwise the first forward pass would fail.

    Raises:
        ValueError: they do not fit; the message names the numbers.
    """
    width, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    if not width or not isinstance(heads, int):  # classes without attention, or with a list of heads per layer
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
    """Return a copy of a configuration with `n` layers; lists with an item per layer are repeated or truncated."""
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
    except Exception as error:  # configuration classes raise many classes of errors
        raise ValueError(f"llm.config: {one_line(error)}") from None


def _tiny(config: PretrainedConfig | LlamaConfig, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a tiny configuration of the same class, with at least one layer of each kind."""
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
    """Return the rotary parameters of a tiny head; lists with a number per pair of dimensions are truncated.

    If only a part of each head has rotary positions, that is half of the tiny head.
    """
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
