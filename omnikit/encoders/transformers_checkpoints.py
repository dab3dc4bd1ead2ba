"""Checkpoints as transformers writes them: a folder of `save_pretrained`, or a hub id of which only what is needed is
fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from torch import Tensor

from omnikit.errors import one_line
from omnikit.hub import CONFIG, hub_file, is_hub_id
from omnikit.untrusted_files import read_json
from omnikit.untrusted_models import read_pickle, read_settings

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WHOLE, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


def read_config(weights: str) -> PretrainedConfig:
    """The configuration of a checkpoint.

    Raises:
        ValueError: it is not to be had, or transformers cannot read it.
    """
    from transformers import AutoConfig

    file = _first(weights, CONFIG)
    try:
        return read_settings(AutoConfig, file.parent)
    except Exception as error:  # transformers raises many kinds
        raise ValueError(f"weights {file}: {one_line(error)}") from None


def weights_file(weights: str) -> Path:
    """The file with the tensors, or with the list of files where there are several.

    Raises:
        ValueError: there is none.
    """
    return _first(weights, WHOLE, INDEX, PICKLED)


def read_tensors(weights: str, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors whose names start with one of `prefixes`, by what comes after it; files without any are not fetched.

    Raises:
        ValueError: a file is missing or cannot be read.
    """
    file = weights_file(weights)
    try:
        if file.name == PICKLED:
            return _chosen(read_pickle(file, mapped=True), prefixes)
        if file.name == WHOLE:
            return _from_safetensors(file, prefixes)
        listed = _chosen(read_json(file)["weight_map"], prefixes)
        shards = [_first(weights, name) for name in sorted(set(listed.values()))]
        return {name: tensor for shard in shards for name, tensor in _from_safetensors(shard, prefixes).items()}
    except ValueError:
        raise
    except Exception as error:  # torch, safetensors and pickle raise many kinds
        raise ValueError(f"weights {file}: {one_line(error)}") from None


def _first(weights: str, *names: str) -> Path:
    """The first of these files that a folder or a hub id has."""
    problem = ValueError(f"weights {weights}: {' or '.join(names)} is missing")
    for name in names:
        if not is_hub_id(weights):
            if (Path(weights) / name).is_file():
                return Path(weights) / name
            continue
        try:
            return hub_file(weights, name)
        except ValueError as error:
            problem = error
    raise problem


def _from_safetensors(file: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as stored:
        names = _chosen({name: name for name in stored.keys()}, prefixes)  # noqa: SIM118 (no mapping)
        return {short: stored.get_tensor(name) for short, name in names.items()}


def _chosen(named: dict[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    return {
        name.removeprefix(start): value
        for start in prefixes
        for name, value in named.items()
        if name.startswith(start)
    }
