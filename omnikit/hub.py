"""Files of a model hub, by `owner/name`; what is in the hub's local cache needs no network."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIG = "config.json"
"""Where transformers writes a configuration."""


def is_hub_id(name: str | Path) -> bool:
    """Whether a name can only mean a repository of the hub: `owner/name`, and there is no folder `owner` here."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)) is not None and not Path(name).parent.exists()


def holds_transformers(weights: str) -> bool:
    """Whether `weights` names a folder that transformers wrote, or a hub id."""
    return is_hub_id(weights) or (Path(weights) / CONFIG).is_file()


def hub_file(repo: str, file: str) -> Path:
    """One file of a repository.

    Raises:
        ValueError: it is neither in the local cache nor to be had from the hub.
    """
    from huggingface_hub import hf_hub_download

    with _hub_errors_in_one_line(repo):
        return Path(hf_hub_download(repo, file))


def hub_folder(repo: str) -> Path:
    """All files of a repository.

    Raises:
        ValueError: see `hub_file`.
    """
    from huggingface_hub import snapshot_download

    with _hub_errors_in_one_line(repo):
        return Path(snapshot_download(repo))


@contextmanager
def _hub_errors_in_one_line(repo: str) -> Iterator[None]:
    """Every attempt of the hub's client would be a line of its own."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{repo}: no such folder here, and not from the hub ({reason})") from None
    finally:
        logger.setLevel(level)
