"""Loading of language models as transformers publishes them: a folder of `save_pretrained`, or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from omnikit.errors import one_line
from omnikit.hub import CONFIG, hub_folder, is_hub_id
from omnikit.llms.baichuan import BAICHUAN, read_baichuan
from omnikit.llms.configs import read_numbers
from omnikit.llms.transformers_trunk import take_norm
from omnikit.untrusted_models import read_network

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_SIZES = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "rms_norm_eps", "layer_norm_eps", "hidden_act", "hidden_activation",
    "rope_parameters", "sliding_window", "layer_types", "query_pre_attn_scalar", "attn_logit_softcapping",
    "final_logit_softcapping", "logit_scale", "logits_scaling",
)  # fmt: skip
"""Names of the configuration entries that must be equal in two models, if present, for weights to be compatible."""


def read_transformers(
    weights: str, config: PretrainedConfig, *, trunk: nn.Module, norm: nn.Module, head: nn.Module
) -> None:
    """Copy published weights into the trunk, final norm and head of a model that was built from `config`.

    A head that is tied in the published model and not in this one is initialised with the embeddings.

    Args:
        weights: folder or hub id of the published model.
        config: configuration that the model was built from.
        trunk: trunk to fill.
        norm: final norm to fill.
        head: head to fill.

    Raises:
        ValueError: the weights are not found, not readable, or of another shape; the message names what is expected and
            found.
    """
    folder = hub_folder(weights) if is_hub_id(weights) else Path(weights)
    found = read_causal_lm(folder)
    _check_sizes(folder, config, found.config)
    source = found.get_decoder()
    pairs = ((norm, take_norm(source)), (trunk, source), (head, found.get_output_embeddings()))
    for own, other in pairs:
        try:
            own.load_state_dict(other.state_dict())
        except RuntimeError as error:
            raise ValueError(f"weights {folder}: {one_line(error)}") from None


def read_causal_lm(folder: Path) -> PreTrainedModel:
    """Read the causal language model in a folder of transformers, in the type that it is stored in.

    Raises:
        ValueError: there is no such model, or weights are missing; the message names the folder.
    """
    numbers = read_numbers(str(folder))
    if numbers["model_type"] == BAICHUAN:
        return read_baichuan(folder, numbers)
    from transformers import AutoModelForCausalLM

    try:
        found, info = read_network(AutoModelForCausalLM, folder, dtype="auto")
    except Exception as error:  # transformers and safetensors raise many classes of errors
        raise ValueError(f"weights {folder}: {one_line(error)}") from None
    if info["missing_keys"]:
        lacking, unknown = (", ".join(sorted(info[kind])[:3]) for kind in ("missing_keys", "unexpected_keys"))
        raise ValueError(f"weights {folder}: {lacking} expected, {unknown or 'nothing else'} found")
    return found


def _check_sizes(folder: Path, expected: PretrainedConfig, found: PretrainedConfig) -> None:
    pairs = {name: (_number(expected, name), _number(found, name)) for name in _SIZES}
    if expected.num_hidden_layers != found.num_hidden_layers:
        del pairs["layer_types"]
    if expected.tie_word_embeddings and not found.tie_word_embeddings:
        pairs["tie_word_embeddings"] = (True, False)
    other = [f"{name} is {there}, expected {here}" for name, (here, there) in pairs.items() if here != there]
    if other:
        raise ValueError(f"weights {folder / CONFIG} does not fit llm.config: {'; '.join(other)}")


def _number(config: PretrainedConfig, name: str) -> Any:
    value = getattr(config, name, None)
    if name == "head_dim" and value is None:
        return config.hidden_size // config.num_attention_heads
    return value


