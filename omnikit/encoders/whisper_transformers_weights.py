"""Read the weights of Whisper's and Qwen2-Audio's encoders in the format of transformers."""

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
"""Mapping from `model_type` of a `transformers` checkpoint to the possible prefixes of its encoder's tensor names."""
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
    """Copy the weights of a transformers checkpoint into a Whisper encoder.

    Args:
        weights: folder or hub id of the checkpoint.
        encoder: network to be filled.
        families: values of `model_type` that fit.

    Raises:
        ValueError: the weights are missing, of another family or of another shape; the message gives the expected and
            the found values.
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
    """Return the options of `WhisperNetwork` that fit a transformers configuration; see `encoder_sizes`."""
    audio = getattr(config, "audio_config", config)
    return {
        "n_mels": audio.num_mel_bins,
        "n_ctx": audio.max_source_positions,
        "width": audio.d_model,
        "heads": audio.encoder_attention_heads,
        "layers": audio.encoder_layers,
    }


def our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a Whisper encoder from the names in `transformers` to those in openai-whisper."""
    return {_whisper_name(name): tensor for name, tensor in state.items()}


def _whisper_name(name: str) -> str:
    for theirs, ours in _NAMES:
        name = re.sub(theirs, ours, name)
    return name
