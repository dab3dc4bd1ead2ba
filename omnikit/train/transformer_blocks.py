"""The transformer blocks of a model, and how each of them is called during training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from omnikit.model import OmniLM

BlockCall = Callable[..., Any]
"""Type of functions with the arguments of a block's `forward`, which return its results."""


def transformer_blocks(model: OmniLM) -> list[nn.Module]:
    """Return the blocks of backbone and TTS adapter in the order in which they are computed."""
    return [block for part in (model.llm, model.tts_adapter) if part is not None for block in blocks_of(part)]


def blocks_of(part: nn.Module) -> list[nn.Module]:
    """Return the blocks of a backbone or a TTS adapter: the modules of its outermost module lists.

    The list is empty if the part keeps its blocks elsewhere.
    """
    if isinstance(part, nn.ModuleList):
        return list(part)
    return [block for child in part.children() for block in blocks_of(child)]


def in_training(block: nn.Module, call: BlockCall) -> None:
    """Let a block be computed by `call` in training steps, and as before without gradients, as in generation.

    The block's modules, and so the names of its weights, stay as they are. Hooks of the block, which shard weights for
    example, are called outside of `call`.
    """
    # a partial object, because its copies refer to the copied block
    block.forward = partial(_forward, block, block.forward, call)


def plain_blocks(model: OmniLM) -> None:
    """Undo `in_training` for all blocks of a model."""
    for block in transformer_blocks(model):
        vars(block).pop("forward", None)


def _forward(block: nn.Module, before: BlockCall, call: BlockCall, *args: Any, **kwargs: Any) -> Any:
    return (call if torch.is_grad_enabled() else before)(*args, **kwargs)
