"""The SpeechBrain Brain of the recipe that trains all tasks, for tests of training steps."""

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
    """Return the training losses of each stream for a batch, as the recipe computes them in a training step."""
    return sum_losses(brain.compute_forward(batch, sb.Stage.TRAIN), recipe.token_loss)
