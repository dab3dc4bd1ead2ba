"""Language models as transformers publishes them: a folder of `save_pretrained`, or a hub id."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from omnikit.hub import hub_folder, is_hub_id

_SIZES = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "rms_norm_eps", "hidden_act", "rope_parameters",
)  # fmt: skip


def holds_transformers(weights: str) -> bool:
    """Whether `weights` names a folder that transformers wrote, or a hub id."""
    return is_hub_id(weights) or (Path(weights) / "config.json").is_file()


def read_transformers(
    weights: str, config: PretrainedConfig, *, trunk: nn.Module, norm: nn.Module, head: nn.Module
) -> None:
    """Copy published weights into the pieces of a model that was built from `config`; a head that is tied there and
    not here starts with the embeddings.

    Raises:
        ValueError: not to be had, not readable, or of another shape; the message names what is expected and found.
    """
    folder = hub_folder(weights) if is_hub_id(weights) else Path(weights)
    try:
        found = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
    except Exception as error:  # transformers and safetensors raise many kinds
        raise ValueError(f"weights {folder}: {' '.join(str(error).split())[:300]}") from None
    _check_sizes(folder, config, found.config)
    source = found.get_decoder()
    with torch.no_grad():
        _copy(norm.state_dict(), source.norm.state_dict())
        source.norm = nn.Identity()
        _copy(trunk.state_dict(), source.state_dict())
        _copy(head.state_dict(), found.get_output_embeddings().state_dict())


def _copy(own: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    for name, tensor in own.items():
        tensor.copy_(found[name])


def _check_sizes(folder: Path, expected: PretrainedConfig, found: PretrainedConfig) -> None:
    pairs = {name: (getattr(expected, name, None), getattr(found, name, None)) for name in _SIZES}
    if expected.tie_word_embeddings and not found.tie_word_embeddings:
        pairs["tie_word_embeddings"] = (True, False)
    other = [f"{name} is {there}, expected {here}" for name, (here, there) in pairs.items() if here != there]
    if other:
        raise ValueError(f"weights {folder / 'config.json'} does not fit llm.config: {'; '.join(other)}")
