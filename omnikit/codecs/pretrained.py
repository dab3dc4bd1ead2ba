"""Read the weights of codecs that were published for transformers: a folder of `save_pretrained`, or a hub id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from omnikit.errors import one_line
from omnikit.hub import CONFIG, hub_folder, is_hub_id
from omnikit.untrusted_files import read_json
from omnikit.untrusted_models import read_network as read_network_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def read_network(weights: str, network: PreTrainedModel, numbers: Mapping[str, Any]) -> None:
    """Copy published weights into a network of the same class; tensors that the network does not have are ignored.

    Args:
        weights: folder or hub id of the published weights.
        network: network to be filled.
        numbers: values of the network's configuration with which the published one has to agree.

    Raises:
        ValueError: the weights cannot be found or read, are incomplete or have another shape; the message gives the
            expected and the found values.
    """
    folder = hub_folder(weights) if is_hub_id(weights) else Path(weights)
    _check_config(folder / CONFIG, type(network.config), numbers)
    with _errors_in_one_line(f"weights {folder}"):
        found, info = read_network_of(type(network), folder, dtype=torch.float32)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"weights {folder}: tensors are missing ({len(missing)}, the first is {missing[0]})")
    theirs = found.state_dict()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(theirs[name])


def read_config(file: Path) -> dict[str, Any]:
    """Read the configuration in a `config.json`.

    Raises:
        ValueError: the file cannot be read or is no configuration.
    """
    with _errors_in_one_line(f"weights {file}: not a configuration"):
        return dict(read_json(file))


def refuse_other_numbers(file: Path, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse a configuration file whose values differ from those that a codec was built from.

    Args:
        file: path of the configuration file, for the message.
        expected: values that the codec was built from.
        found: values of the file; keys that it lacks are not compared.

    Raises:
        ValueError: some values differ; the message lists them.
    """
    other = [
        f"{name} is {found[name]}, expected {value}"
        for name, value in expected.items()
        if name in found and _plain(found[name]) != _plain(value)
    ]
    if other:
        raise ValueError(f"weights {file} does not fit codec: {'; '.join(other)}")


def _check_config(file: Path, kind: type[PreTrainedConfig], numbers: Mapping[str, Any]) -> None:
    stored = read_config(file)
    refuse_other_numbers(file, {"model_type": kind.model_type}, stored)
    with _errors_in_one_line(f"weights {file}"):
        config = kind.from_dict(stored)  # fills in the class's defaults
    refuse_other_numbers(file, numbers, {name: getattr(config, name) for name in numbers})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@contextmanager
def _errors_in_one_line(what: str) -> Iterator[None]:
    """Turn any exception of a block into a `ValueError` of one line that begins with `what`.

    transformers, safetensors and json raise many kinds of errors, some of them many lines long.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {one_line(error)}") from None
