"""Where a stage's weights come from."""

from __future__ import annotations

from omnikit import checkpoint
from omnikit.model import OmniLM


def start_weights(model: OmniLM, start_from: str | None) -> dict[str, str]:
    """Fill a built model: from the former stage's folder, or from the weights that its parts name.

    Returns:
        Part -> where its weights came from; parts that stay random are not in it.

    Raises:
        ValueError: the folder is no checkpoint, or its parts are not this model's; the message names what differs.
    """
    if start_from is not None:
        checkpoint.restore(model, start_from)
        return dict.fromkeys(model.parts(), start_from)
    model.load_weights()
    named = {"encoder": model.encoder.weights, "llm": model.llm.weights, "codec": model.codec.weights}
    return {name: weights for name, weights in named.items() if weights is not None}
