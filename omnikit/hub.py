"""Access to files of a model hub by `owner/name`; files in the hub's local cache need no network."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omnikit.errors import MissingWeights

CONFIG = "config.json"
"""Name of the file to which transformers writes a configuration."""


def is_hub_id(name: str | Path) -> bool:
    """Return whether a name can only mean a repository of the hub: `owner/name` where there is no local folder `owner`.
    """
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)) is not None and not Path(name).parent.exists()


def holds_transformers(weights: str) -> bool:
    """Return whether a path of weights is a folder written by transformers, or a hub id."""
    return is_hub_id(weights) or (Path(weights) / CONFIG).is_file()


def hub_file(repo: str, file: str) -> Path:
    """Return the local path of one file of a hub repository, downloading it if it is not cached.

    Raises:
        MissingWeights: the file is neither in the local cache nor available from the hub.
    """
    from huggingface_hub import hf_hub_download

    with _hub_errors_in_one_line(repo):
        return Path(hf_hub_download(repo, file))


def hub_folder(repo: str) -> Path:
    """Return the local folder with all files of a hub repository, downloading those that are not cached.

    Raises:
        MissingWeights: the files are neither in the local cache nor available from the hub.
    """
    from huggingface_hub import snapshot_download

    with _hub_errors_in_one_line(repo):
        return Path(snapshot_download(repo))


def hub_dataset(repo: str, revision: str | None = None) -> Path:
    """Return the local folder with all files of a data set of the hub, downloading those that are not cached.

    Raises:
        MissingWeights: the files are neither in the local cache nor available from the hub.
    """
    from huggingface_hub import snapshot_download

    with _hub_errors_in_one_line(repo):
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision))


@contextmanager
def _hub_errors_in_one_line(repo: str) -> Iterator[None]:
    """Context manager that raises the hub client's errors as a `MissingWeights` of one line and silences its log."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise MissingWeights(f"{repo}: no such folder here, and not from the hub ({reason})") from None
    finally:
        logger.setLevel(level)
