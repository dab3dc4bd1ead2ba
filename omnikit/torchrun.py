"""Rank, device and processor cores of this process, which may be one of several that torchrun started."""

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
        """Return rank and number of processes from torchrun's environment variables; 0 and 1 without torchrun."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def own_device(device: str) -> str:
    """Return the device of this process: under torchrun `cuda` becomes the GPU of its local rank."""
    rank = os.environ.get("LOCAL_RANK")
    return device if rank is None or device != "cuda" else f"cuda:{rank}"


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_device(device: str) -> None:
    """Refuse a torch device that is not available, or that cannot hold values (`meta`).

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
