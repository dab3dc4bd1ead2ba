"""Read the weights of HuBERT, wav2vec 2.0 and WavLM in the format of transformers, with its own loader."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from omnikit.encoders.transformers_checkpoints import read_config, weights_file
from omnikit.errors import one_line
from omnikit.untrusted_models import read_network

_SIZES = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
    "layer_norm_eps", "do_stable_layer_norm", "conv_dim", "conv_kernel", "conv_stride", "conv_bias",
    "feat_extract_norm", "feat_extract_activation", "feat_proj_layer_norm", "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups", "conv_pos_batch_norm", "num_buckets", "max_bucket_distance", "add_adapter",
    "adapter_attn_dim",
)  # fmt: skip
_SHOWN = 3


def read_speech(weights: str, net: PreTrainedModel) -> None:
    """Copy the weights of a folder or hub id into a speech encoder; tensors that it does not have are ignored.

    Raises:
        ValueError: the weights are missing, not readable, incomplete or of another shape; the message gives the
            expected and the found values.
    """
    _check_sizes(weights, net.config, read_config(weights))
    file = weights_file(weights)
    try:
        options = {"config": copy.deepcopy(net.config), "dtype": torch.float32}
        found, report = read_network(type(net), file.parent, **options)
    except Exception as error:  # transformers and safetensors raise many kinds
        raise ValueError(f"weights {file}: {one_line(error)}") from None
    if report["missing_keys"]:
        lacking = sorted(report["missing_keys"])
        more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        raise ValueError(f"weights {file} does not fit this encoder: lacks {', '.join(lacking[:_SHOWN])}{more}")
    net.load_state_dict(found.state_dict())


def _check_sizes(weights: str, expected: PretrainedConfig, found: PretrainedConfig) -> None:
    pairs = {name: (_plain(expected, name), _plain(found, name)) for name in _SIZES}
    if pairs["model_type"][0] != pairs["model_type"][1]:  # values of another family are not comparable
        pairs = {"model_type": pairs["model_type"]}
    other = [f"{name} is {there}, expected {here}" for name, (here, there) in pairs.items() if here != there]
    if other:
        raise ValueError(f"weights {weights} does not fit encoder.config: {'; '.join(other)}")


def _plain(config: PretrainedConfig, name: str) -> Any:
    value = getattr(config, name, None)
    return list(value) if isinstance(value, tuple) else value
