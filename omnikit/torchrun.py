"""Rank and device of this process among those that torchrun started."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Rank of this process and number of processes that share the work."""

    rank: int = 0
    processes: int = 1

    @classmethod
    def of_torchrun(cls) -> Share:
        """Return the share that torchrun's environment variables give; without torchrun, that of a single process."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def own_device(device: str) -> str:
    """Return the device of this process: under torchrun `cuda` becomes the GPU of its local rank."""
    rank = os.environ.get("LOCAL_RANK")
    return device if rank is None or device != "cuda" else f"cuda:{rank}"


def check_device(device: str) -> None:
    """Refuse a device that is not available or holds no values.

    Raises:
        ValueError: the message names the choices.
    """
    import torch  # imported here, since preparing corpora does not need it

    try:
        kind = torch.device(device).type
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError):  # torch says "not compiled with" by an assertion
        known = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        raise ValueError(f"--device {device}: not available here (choices: {', '.join(known)})") from None
    if kind == "meta":
        raise ValueError("--device meta: holds no weights")
