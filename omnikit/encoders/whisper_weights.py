"""Read weights in the format of openai-whisper: a `.pt` file with `dims` and `model_state_dict`, or a model's name."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from omnikit.encoders.whisper_network import encoder_sizes
from omnikit.errors import one_line

if TYPE_CHECKING:
    from whisper.model import Whisper

_SAFE = ".safetensors"


def is_published(weights: str) -> bool:
    """Return whether `weights` is the name of an openai-whisper model or a `.pt` file."""
    suffix = Path(weights).suffix
    return suffix == ".pt" or (suffix != _SAFE and weights in _names())


def read_encoder(weights: str, encoder: nn.Module) -> None:
    """Copy the encoder weights of an openai-whisper model into a Whisper encoder.

    Raises:
        ValueError: see `read_whisper`; or the weights have another shape, the message gives the expected and the found
            values.
    """
    found = read_whisper(weights).encoder
    expected, there = encoder_sizes(encoder), encoder_sizes(found)
    if expected != there:
        other = [f"{name} is {n}, expected {expected[name]}" for name, n in there.items() if n != expected[name]]
        raise ValueError(f"weights {weights} does not fit this encoder: {'; '.join(other)}")
    encoder.load_state_dict(found.state_dict())


def read_whisper(weights: str) -> Whisper:
    """Load a whole Whisper model, given by name or `.pt` file, with openai-whisper's own loader.

    Raises:
        ValueError: the file does not exist, is not a file of openai-whisper, or cannot be fetched by its name.
    """
    import whisper

    if weights not in _names() and not Path(weights).is_file():
        known = ", ".join(_names())
        raise ValueError(f"weights {weights}: no such file (openai-whisper's names: {known})")
    try:
        return whisper.load_model(weights, device="cpu")
    except OSError as error:
        raise ValueError(f"weights {weights}: does not exist here and cannot be fetched ({error})") from None
    except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"weights {weights}: not a file of openai-whisper ({one_line(error)})") from None


def _names() -> list[str]:
    """Return the names of the models that openai-whisper can download."""
    import whisper  # takes long to import

    return whisper.available_models()
