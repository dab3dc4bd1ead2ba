"""Build a system with Whisper base as the encoder from the mini system: a new adapter, the other parts as they are.

    python start_system.py --output_folder DIR [--weights base.pt]

Whisper's weights are fetched by their name if no file is given.
"""

from __future__ import annotations

from pathlib import Path

from omnikit import checkpoint
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.hparams import build_parts
from omnikit.model import OmniLM

TTS_BLOCKS = 2  # as in train.yaml
REPLACED = ("encoder.", "adapter.")
"""Beginnings of the names of the weights that the new system does not take from the mini system."""


def start_system(weights: str | None) -> OmniLM:
    """Return a model of the mini system's parts and weights, but with Whisper base and a random adapter.

    Args:
        weights: file or name of Whisper's weights; None = the name in the part's file.

    Raises:
        ValueError: Whisper's weights cannot be read or fetched.
    """
    mini = checkpoint.load()
    options: dict[str, object] = {"encoder.pad_to_30s": False, "model.tts_blocks": TTS_BLOCKS}
    if weights is not None:
        options["encoder.weights"] = weights
    model = build_parts({"encoder": "whisper_base"}, options)["model"]
    model.load_weights()
    kept = {name: tensor for name, tensor in mini.state_dict().items() if not name.startswith(REPLACED)}
    model.load_state_dict(kept, strict=False)
    return model


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_folder", type=Path, required=True, metavar="DIR", help="folder of the checkpoint")
    parser.add_argument("--weights", metavar="FILE", help="Whisper's weights, such as base.pt; default: by their name")
    options = parser.parse_args()
    checkpoint.save(start_system(options.weights), options.output_folder)


if __name__ == "__main__":
    with bad_input_exits():
        main()
