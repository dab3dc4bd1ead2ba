"""The only place where transformers and torch read models that somebody else wrote.

No code in a model is run, no user is asked to allow it, and nothing is downloaded: files of a hub are downloaded
before, see `omnikit.hub`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from omnikit.untrusted_files import check_regular


def read_settings(kind: Any, folder: str | Path, **options: Any) -> Any:
    """Read a configuration, tokenizer or processor of transformers from a folder.

    Args:
        kind: class of transformers, such as `AutoConfig`.
        folder: folder as written by `save_pretrained`.
        options: further arguments of `from_pretrained`.

    Raises:
        Exception: of many kinds; also if the folder requires code of its own to be run.
    """
    return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **options)


def read_network(kind: Any, folder: str | Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Read a network of transformers from a folder, with transformers' report of missing and unknown weights.

    Args:
        kind, folder, options: see `read_settings`.

    Raises:
        Exception: see `read_settings`.
    """
    return read_settings(kind, folder, weights_only=True, output_loading_info=True, **options)


def build_network(auto: Any, config: Any) -> Any:
    """Build a network with random weights from a configuration, by one of transformers' auto classes.

    Raises:
        Exception: of many kinds.
    """
    return auto.from_config(config, trust_remote_code=False)


def read_pickle(file: str | Path, *, mapped: bool = False) -> Any:
    """Read the tensors of a file of `torch.save` to the CPU; anything else in it is refused and not run.

    Args:
        file: path of the file.
        mapped: leave the tensors in the file until they are used.

    Raises:
        Exception: of many kinds.
    """
    check_regular(file)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
