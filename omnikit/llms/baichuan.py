"""Reader of Baichuan 7B and Baichuan 2 7B, which are Llama under other names, without executing their own code.

Their attention holds the three projections in one matrix `W_pack`, and Baichuan 2 scales every row of its head to
length 1 whenever it is used (Yang et al. 2023, arXiv 2309.10305, section 2.4). Both fold into Llama's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from omnikit.errors import one_line
from omnikit.untrusted_models import read_pickle

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

BAICHUAN = "baichuan"
_SECOND = "BaichuanForCausalLM"  # Baichuan 2; the class of the first Baichuan is spelt BaiChuanForCausalLM
_WIDTH_13B = 5120
_NUMBERS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
    "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
)  # fmt: skip


def llama_numbers(numbers: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """Convert the entries of a Baichuan `config.json` to those of a Llama configuration.

    Args:
        numbers: content of the `config.json`.
        where: name of the weights, for the error message.

    Raises:
        ValueError: a 13B model, whose positions are biases of the attention (ALiBi).
    """
    if numbers.get("hidden_size") == _WIDTH_13B:
        raise ValueError(f"weights {where}: Baichuan 13B has no rotary positions; the 7B models can be read")
    return {"model_type": "llama", **{name: numbers[name] for name in _NUMBERS if name in numbers}}


def read_baichuan(folder: Path, numbers: Mapping[str, Any]) -> LlamaForCausalLM:
    """Read the Baichuan model in a folder as a Llama, in the type that it is stored in.

    Args:
        folder: folder with the weights, safetensors or torch files.
        numbers: content of its `config.json`.

    Raises:
        ValueError: there are no weights, or they do not fit the numbers; the message names what differs.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**llama_numbers(numbers, folder))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state = _llama_state(_tensors(folder), normed_head=_SECOND in numbers.get("architectures", ()))
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"weights {folder}: {one_line(error)}") from None
    return model


def _llama_state(state: Mapping[str, Tensor], normed_head: bool) -> dict[str, Tensor]:
    llama = {}
    for name, tensor in state.items():
        if name.endswith("W_pack.weight"):
            for own, rows in zip("qkv", tensor.chunk(3), strict=True):
                llama[name.replace("W_pack", f"{own}_proj")] = rows
        elif not name.endswith("rotary_emb.inv_freq"):  # Llama computes it itself
            llama[name] = tensor
    if normed_head and "lm_head.weight" in llama:
        llama["lm_head.weight"] = F.normalize(llama["lm_head.weight"].float())
    return llama


def _tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ValueError(f"weights {folder}: neither *.safetensors nor pytorch_model*.bin")
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            state |= load_file(file) if file.suffix == ".safetensors" else _unpickled(file)
        except Exception as error:  # torch and safetensors raise many classes of errors
            raise ValueError(f"weights {file}: {one_line(error)}") from None
    return state


def _unpickled(file: Path) -> dict[str, Tensor]:
    """Read a torch file as tensors only; nothing that it holds is executed."""
    return read_pickle(file)
