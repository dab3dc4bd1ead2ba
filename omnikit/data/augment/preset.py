"""Augmentation chosen by the name of a file in `hparams/augment/`, as parts are."""

from __future__ import annotations

from typing import Any

from omnikit.data.augment.chain import Augment
from omnikit.hparams import build_part
from omnikit.hparams.named_parts import AUGMENT


def named_augment(value: Any) -> Augment | None:
    """Return the effects that a recipe or a command line names.

    Args:
        value: name of a file in `hparams/augment/`, or the path of another one that ends in `.yaml`; or the effects
            themselves, as a recipe's YAML builds them; or None.

    Raises:
        ValueError: there is no such file, or it holds no augmentation.
    """
    found = build_part(AUGMENT, value) if isinstance(value, str) else value
    if not (found is None or isinstance(found, Augment)):
        raise ValueError(f"--augment {value}: must name a file in hparams/augment, a path to one (.yaml), or be null")
    return found
