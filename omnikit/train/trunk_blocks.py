"""The blocks of a trunk, whatever its class calls them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def trunk_blocks(module: nn.Module) -> Sequence[nn.Module]:
    """Return the blocks of a backbone or a TTS adapter: its module list with the most parameters."""
    lists = [each for each in module.modules() if isinstance(each, nn.ModuleList)]
    return max(lists, key=lambda each: sum(p.numel() for p in each.parameters()), default=nn.ModuleList())
