"""Options of a recipe that change how transformer blocks are computed in training, but not their results."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from omnikit.model import OmniLM
from omnikit.train.activation_checkpointing import checkpoint_activations
from omnikit.train.compile_blocks import compile_blocks, whether_to_compile
from omnikit.train.transformer_blocks import transformer_blocks

logger = logging.getLogger(__name__)


def set_up_blocks(model: OmniLM, hparams: Mapping[str, Any]) -> None:
    """Compile the blocks of a model and checkpoint their activations, as the recipe's options say.

    The model is on its device, and its frozen parts are frozen.

    Raises:
        ValueError: an option is set, but the blocks of the backbone are not known.
    """
    compiled, why = whether_to_compile(hparams["compile_blocks"], model.device)
    checkpointed = hparams["activation_checkpointing"]
    blocks = len(transformer_blocks(model))
    if not blocks and (checkpointed or hparams["compile_blocks"] is True):
        flag = "activation_checkpointing" if checkpointed else "compile_blocks"
        raise ValueError(f"--{flag} true: {type(model.llm).__name__} has no list of blocks; use false")
    if compiled:
        compile_blocks(model)
    if checkpointed:
        checkpoint_activations(model)
    states = f"{'' if compiled else 'not '}compiled ({why}), activations {'recomputed' if checkpointed else 'stored'}"
    logger.info("%d transformer blocks: %s", blocks, states)
