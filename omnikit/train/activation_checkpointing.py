"""Activation checkpointing: blocks store only their inputs and are computed again in the backward pass.

Chen et al. 2016, arXiv 1604.06174.
"""

from __future__ import annotations

from functools import partial

from torch.utils.checkpoint import checkpoint

from omnikit.model import OmniLM
from omnikit.train.transformer_blocks import in_training, transformer_blocks


def checkpoint_activations(model: OmniLM) -> None:
    """Let the blocks of backbone and TTS adapter recompute their activations in the backward pass.

    A training step then stores one hidden state per block and position, and takes about a third more operations. Blocks
    that are compiled have to be compiled before.
    """
    for block in transformer_blocks(model):
        in_training(block, partial(checkpoint, block.forward, use_reentrant=False))
