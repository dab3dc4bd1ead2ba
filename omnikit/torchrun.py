"""Which of torchrun's processes this is, and on which device it runs."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Which of several processes this is."""

    rank: int = 0
    processes: int = 1

    @classmethod
    def of_torchrun(cls) -> Share:
        """From the environment; the only one where torchrun did not start it."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def own_device(device: str) -> str:
    """Each process of torchrun has a GPU of its own: `cuda` means that one."""
    rank = os.environ.get("LOCAL_RANK")
    return device if rank is None or device != "cuda" else f"cuda:{rank}"


def check_device(device: str) -> None:
    """Refuse a device that is not there or holds nothing.

    Raises:
        ValueError: the message names the choices.
    """
    import torch  # preparing corpora needs none

    try:
        kind = torch.device(device).type
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError):  # torch says "not compiled with" by an assertion
        known = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        raise ValueError(f"--device {device}: not available here (choices: {', '.join(known)})") from None
    if kind == "meta":
        raise ValueError("--device meta: holds no weights")
