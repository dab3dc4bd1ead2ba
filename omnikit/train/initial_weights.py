"""Where a stage's weights come from."""

from __future__ import annotations

from omnikit import checkpoint
from omnikit.model import OmniLM


def load_initial_weights(model: OmniLM, initial_weights: str | None) -> dict[str, str]:
    """Fill a built model: from the former stage's folder, or from the weights that its parts name.

    Returns:
        Part -> where its weights came from; parts that stay random are not in it.

    Raises:
        ValueError: the folder is no checkpoint, or its parts are not this model's; the message names what differs.
    """
    if initial_weights is not None:
        checkpoint.restore(model, initial_weights)
        return dict.fromkeys(model.parts(), initial_weights)
    model.load_weights()
    named = {"encoder": model.encoder.weights, "llm": model.llm.weights, "codec": model.codec.weights}
    return {name: weights for name, weights in named.items() if weights is not None}
