"""Files of a model hub, by `owner/name`; what is in the hub's local cache needs no network."""

from __future__ import annotations

import re
from pathlib import Path


def is_hub_id(name: str | Path) -> bool:
    """Whether a name can only mean a repository of the hub: `owner/name`, and nothing of that name is here."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)) is not None and not Path(name).exists()


def hub_file(repo: str, file: str) -> Path:
    """One file of a repository.

    Raises:
        ValueError: it is neither in the local cache nor to be had from the hub.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(repo, file))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise _unreachable(repo, error) from None


def hub_folder(repo: str) -> Path:
    """All files of a repository.

    Raises:
        ValueError: see `hub_file`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(repo))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise _unreachable(repo, error) from None


def _unreachable(repo: str, error: Exception) -> ValueError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ValueError(f"{repo}: no such folder here, and not from the hub ({reason})")
