"""The Brain of the recipe that learns every task, for tests of what trains and how."""

from __future__ import annotations

import speechbrain as sb

from omnikit.data.collate import Batch
from omnikit.losses import StreamLosses, sum_losses
from omnikit.model import OmniLM
from tests.recipes.trees import RECIPES, load_script

recipe = load_script(RECIPES / "VoiceAssistant" / "QA" / "train.py")
QABrain = recipe.QABrain


def brain_of(model: OmniLM) -> QABrain:
    return QABrain({"model": model}, run_opts={"device": "cpu"})


def losses_of(brain: QABrain, batch: Batch) -> StreamLosses:
    """The losses of each stream as the recipe computes them in a training step."""
    return sum_losses(brain.compute_forward(batch, sb.Stage.TRAIN), recipe.token_loss)
