"""Initial weights of a training: those of an earlier stage's checkpoint, or those that the parts name."""

from __future__ import annotations

from omnikit import checkpoint
from omnikit.model import OmniLM


def load_initial_weights(model: OmniLM, initial_weights: str | None) -> dict[str, str]:
    """Load the weights of a model from an earlier checkpoint or, if `initial_weights` is None, part by part.

    Args:
        model: model with random weights.
        initial_weights: checkpoint folder; None loads the weights that each part's options name.

    Returns:
        Mapping from part to the origin of its weights; parts that stay random are absent.

    Raises:
        ValueError: the folder is not a checkpoint, or has other parts than the model; the message names them.
    """
    if initial_weights is not None:
        checkpoint.restore(model, initial_weights)
        return dict.fromkeys(model.parts(), initial_weights)
    model.load_weights()
    named = {"encoder": model.encoder.weights, "llm": model.llm.weights, "codec": model.codec.weights}
    return {name: weights for name, weights in named.items() if weights is not None}
