"""The only place where libraries read models of other people.

Nothing that lies there is run, nobody is asked whether it may be, and nothing is fetched: what a hub has is fetched
before, see `omnikit.hub`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from omnikit.untrusted_files import check_regular


def read_settings(kind: Any, folder: str | Path, **options: Any) -> Any:
    """A configuration, tokenizer or processor of transformers from a folder.

    Args:
        kind: transformers' class, such as `AutoConfig`.
        folder: as its `save_pretrained` writes it.
        options: further arguments of its `from_pretrained`.

    Raises:
        Exception: of many kinds; also where the folder wants code of its own to be run.
    """
    return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **options)


def read_network(kind: Any, folder: str | Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A network of transformers from a folder, and transformers' report of names that are missing or unknown.

    Args:
        kind, folder, options: see `read_settings`.

    Raises:
        Exception: see `read_settings`.
    """
    return read_settings(kind, folder, weights_only=True, output_loading_info=True, **options)


def build_network(auto: Any, config: Any) -> Any:
    """A network with random weights from a configuration, by one of transformers' auto classes.

    Raises:
        Exception: of many kinds.
    """
    return auto.from_config(config, trust_remote_code=False)


def read_pickle(file: str | Path, *, mapped: bool = False) -> Any:
    """The tensors of a file of `torch.save`, on the CPU; whatever else it holds is refused and not run.

    Args:
        file: a path.
        mapped: leave the tensors in the file until they are needed.

    Raises:
        Exception: of many kinds.
    """
    check_regular(file)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
