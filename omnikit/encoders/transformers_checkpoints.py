"""Read checkpoints in the format of transformers: a folder of `save_pretrained`, or a hub id.

From the hub only the files that are needed are fetched.
"""

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
    """Read the configuration of a transformers checkpoint, given as a folder or a hub id.

    Raises:
        ValueError: the configuration is missing, or transformers cannot read it.
    """
    from transformers import AutoConfig

    file = _first(weights, CONFIG)
    try:
        return read_settings(AutoConfig, file.parent)
    except Exception as error:  # transformers raises many kinds
        raise ValueError(f"weights {file}: {one_line(error)}") from None


def weights_file(weights: str) -> Path:
    """Return the path of a transformers checkpoint's weights: the file with all tensors, or the index of several files.

    Raises:
        ValueError: the checkpoint has no such file.
    """
    return _first(weights, WHOLE, INDEX, PICKLED)


def read_tensors(weights: str, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Read the tensors of a transformers checkpoint whose names start with one of `prefixes`.

    Files that hold none of them are not fetched.

    Returns:
        Tensors by their names without the prefix.

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
    """Return the path of the first of the given files that a folder or a hub id has, fetching it where necessary.

    Raises:
        ValueError: none of them exists.
    """
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
