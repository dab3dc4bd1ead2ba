"""Weights as openai-whisper publishes them: a `.pt` file with `dims` and `model_state_dict`, or the name of one."""

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
    """Whether `weights` is one of openai-whisper's names or a `.pt` file."""
    suffix = Path(weights).suffix
    return suffix == ".pt" or (suffix != _SAFE and weights in _names())


def read_encoder(weights: str, encoder: nn.Module) -> None:
    """Copy published weights into an encoder.

    Raises:
        ValueError: see `read_whisper`; or another shape, the message names what is expected and found.
    """
    found = read_whisper(weights).encoder
    expected, there = encoder_sizes(encoder), encoder_sizes(found)
    if expected != there:
        other = [f"{name} is {n}, expected {expected[name]}" for name, n in there.items() if n != expected[name]]
        raise ValueError(f"weights {weights} does not fit this encoder: {'; '.join(other)}")
    encoder.load_state_dict(found.state_dict())


def read_whisper(weights: str) -> Whisper:
    """The whole model of a published file, by openai-whisper's own loader.

    Raises:
        ValueError: no such file, not a file of openai-whisper, or its name is known and it cannot be fetched.
    """
    import whisper

    if weights not in _names() and not Path(weights).is_file():
        known = ", ".join(_names())
        raise ValueError(f"weights {weights}: no such file (openai-whisper's names: {known})")
    try:
        return whisper.load_model(weights, device="cpu")
    except OSError as error:
        raise ValueError(f"weights {weights}: not here, and not to be fetched ({error})") from None
    except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"weights {weights}: not a file of openai-whisper ({one_line(error)})") from None


def _names() -> list[str]:
    """The names of openai-whisper's models; the package takes longer to import than the rest of this one."""
    import whisper

    return whisper.available_models()
