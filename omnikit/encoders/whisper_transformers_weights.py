"""Weights of Whisper's kind of encoder as transformers writes them: Whisper itself and Qwen2-Audio's tower."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import Tensor, nn

from omnikit.encoders.transformers_checkpoints import read_config, read_tensors
from omnikit.encoders.whisper_network import encoder_sizes
from omnikit.errors import one_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PREFIXES = {
    "whisper": ("model.encoder.", "encoder."),
    "qwen2_audio": ("audio_tower.", "model.audio_tower."),
    "qwen2_audio_encoder": ("",),
}
"""What stands before the encoder's names, by transformers' `model_type`."""
_NAMES = (
    (r"^embed_positions\.weight$", "positional_embedding"),
    (r"^layer_norm\.", "ln_post."),
    (r"^layers\.", "blocks."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.self_attn\.q_proj\.", ".attn.query."),
    (r"\.self_attn\.k_proj\.", ".attn.key."),
    (r"\.self_attn\.v_proj\.", ".attn.value."),
    (r"\.self_attn\.out_proj\.", ".attn.out."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
)


def read_transformers(weights: str, encoder: nn.Module, families: tuple[str, ...]) -> None:
    """Copy the weights of a folder or hub id into an encoder.

    Args:
        families: the `model_type`s that fit.

    Raises:
        ValueError: not to be had, of another family or another shape; the message names what is expected and found.
    """
    config = read_config(weights)
    if config.model_type not in families:
        raise ValueError(f"weights {weights}: model_type is {config.model_type}, expected {' or '.join(families)}")
    expected, found = encoder_sizes(encoder), transformers_sizes(config)
    other = [f"{name} is {n}, expected {expected[name]}" for name, n in found.items() if n != expected[name]]
    if other:
        raise ValueError(f"weights {weights} does not fit this encoder: {'; '.join(other)}")
    state = our_names(read_tensors(weights, PREFIXES[config.model_type]))
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"weights {weights} does not fit this encoder: {one_line(error)}") from None


def transformers_sizes(config: PretrainedConfig) -> dict[str, int]:
    """See `encoder_sizes`."""
    audio = getattr(config, "audio_config", config)
    return {
        "n_mels": audio.num_mel_bins,
        "n_ctx": audio.max_source_positions,
        "width": audio.d_model,
        "heads": audio.encoder_attention_heads,
        "layers": audio.encoder_layers,
    }


def our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by transformers' names -> by openai-whisper's."""
    return {_our_name(name): tensor for name, tensor in state.items()}


def _our_name(name: str) -> str:
    for theirs, ours in _NAMES:
        name = re.sub(theirs, ours, name)
    return name
