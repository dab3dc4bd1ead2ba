"""The SpeechBrain Brain of the recipe that trains all tasks, for tests of training steps."""

from __future__ import annotations

import speechbrain as sb
import torch
from torch import Tensor

from omnikit.data.collate import Batch
from omnikit.losses import StreamLosses, label_weights, stream_losses
from omnikit.model import OmniLM
from tests.recipes.trees import RECIPES, load_script

recipe = load_script(RECIPES / "VoiceAssistant" / "QA" / "train.py")
QABrain = recipe.QABrain


def brain_of(model: OmniLM) -> QABrain:
    return QABrain({"model": model}, run_opts={"device": "cpu"})


def losses_of(brain: QABrain, batch: Batch) -> tuple[Tensor, StreamLosses]:
    """Return the objective of a batch, and its losses by task and stream, as the recipe computes them in training."""
    hidden = brain.compute_forward(batch, sb.Stage.TRAIN)
    weights = label_weights(batch.step_labels, torch.ones(brain.model.layout.num_streams))
    return stream_losses(brain.model, hidden, batch, weights, recipe.token_loss)
