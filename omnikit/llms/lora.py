"""Low-rank adaptation of a trunk (Hu et al. 2021, arXiv 2106.09685) through peft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from omnikit.hparams.name_lookup import nearest
from omnikit.option_ranges import POSITIVE, Range
from omnikit.weights import LORA

ALL_LINEAR = "all-linear"
DEFAULTS = {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": ALL_LINEAR}
"""Default options of LoRA."""
_RANGES = {"alpha": POSITIVE, "dropout": Range(0, 1)}
_BASE = ".base_layer."


def add_lora(trunk: nn.Module, options: Mapping[str, Any]) -> None:
    """Add trainable low-rank matrices (LoRA) to the weight matrices of a trunk; initially they change nothing.

    The trunk's own weights keep their names, so that a state without LoRA can be loaded into a trunk with it.

    Args:
        trunk: trunk to change in place.
        options: `rank`, `alpha`, `dropout`, and `targets`, the last parts of the names of matrices, or `all-linear`;
            missing options are taken from `DEFAULTS`.

    Raises:
        ValueError: an unknown option or target, or peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError("llm.lora: needs the Python package peft: pip install omnikit[lora]") from None
    chosen = _checked(trunk, options)
    config = LoraConfig(
        r=chosen["rank"],
        lora_alpha=chosen["alpha"],
        lora_dropout=chosen["dropout"],
        target_modules=chosen["targets"],
    )
    inject_adapter_in_model(config, trunk)
    trunk.register_state_dict_post_hook(_to_own_names)
    trunk.register_load_state_dict_pre_hook(_to_peft_names)


def train_lora_alone(module: nn.Module) -> None:
    """Freeze all parameters of a module except those of LoRA."""
    for name, parameter in module.named_parameters():
        if LORA not in name:
            parameter.requires_grad_(False)


def _checked(trunk: nn.Module, options: Mapping[str, Any]) -> dict[str, Any]:
    from transformers.pytorch_utils import Conv1D

    for name in options:
        if name not in DEFAULTS:
            raise ValueError(f"--llm.lora.{name}: no such option{nearest(name, DEFAULTS)}")
    chosen = {**DEFAULTS, **options}
    if not isinstance(chosen["rank"], int) or chosen["rank"] < 1:
        raise ValueError(f"--llm.lora.rank {chosen['rank']}: must be a whole number from 1")
    for name, allowed in _RANGES.items():
        allowed.check(f"llm.lora.{name}", chosen[name])
    layers = {name.rpartition(".")[2] for name, layer in trunk.named_modules() if isinstance(layer, nn.Linear | Conv1D)}
    if chosen["targets"] != ALL_LINEAR:
        chosen["targets"] = [chosen["targets"]] if isinstance(chosen["targets"], str) else list(chosen["targets"])
        for name in chosen["targets"]:
            if name not in layers:
                raise ValueError(f"--llm.lora.targets {name}: no such layer{nearest(name, [*layers, ALL_LINEAR])}")
    return chosen


def _to_own_names(trunk: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Rename the weights in a state from peft's names to those of a trunk without LoRA."""
    for name in [name for name in state if name.startswith(prefix) and _BASE in name]:
        state[name.replace(_BASE, ".")] = state.pop(name)


def _to_peft_names(trunk: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Rename the weights in a state to peft's names before it is loaded into a trunk with LoRA.

    A state without LoRA weights gets those that the trunk has, so that loading does not change them.
    """
    with_lora = any(LORA in name for name in state if name.startswith(prefix))
    for name, parameter in trunk.named_parameters(prefix=prefix.rstrip(".")):
        own = name.replace(_BASE, ".")
        if own != name and own in state:
            state[name] = state.pop(own)
        elif LORA in name and not with_lora:
            state[name] = parameter.detach()
