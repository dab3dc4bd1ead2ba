"""Read weights in the format of openai-whisper: a `.pt` file with `dims` and `model_state_dict`, or a model's name."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from omnikit.encoders.whisper_network import encoder_sizes
from omnikit.errors import MissingWeights, one_line
from omnikit.public_weights import located
from omnikit.untrusted_models import read_pickle

if TYPE_CHECKING:
    from whisper.model import Whisper

_SAFE, _TORCH = ".safetensors", ".pt"
_SIZES = {
    "n_mels": "n_mels", "n_ctx": "n_audio_ctx", "width": "n_audio_state", "heads": "n_audio_head",
    "layers": "n_audio_layer",
}  # fmt: skip
"""Mapping from the options of `WhisperNetwork` that determine shapes to the names that openai-whisper has for them."""
_ENCODER = "encoder."
_DAMAGED = (RuntimeError, LookupError, TypeError, AttributeError, EOFError, pickle.UnpicklingError)
"""Errors of torch and openai-whisper about files that are damaged or hold something else."""


def is_published(weights: str) -> bool:
    """Return whether `weights` is the name of an openai-whisper model or a `.pt` file."""
    path = Path(weights)
    if path.suffix in (_TORCH, _SAFE) or path.name != weights:  # without openai-whisper, which takes seconds to import
        return path.suffix == _TORCH
    return weights in _names()


def read_encoder(weights: str, encoder: nn.Module) -> None:
    """Copy the encoder weights of an openai-whisper model, given by name or `.pt` file, into a Whisper encoder.

    A file is read without openai-whisper, which takes seconds to import.

    Raises:
        ValueError: see `read_whisper`; or the weights have another shape, the message gives the expected and the found
            values.
    """
    if Path(weights).suffix == _TORCH and Path(weights).is_file():
        there, state = _read_file(weights)
    else:
        found = read_whisper(weights).encoder
        there, state = encoder_sizes(found), found.state_dict()
    expected = encoder_sizes(encoder)
    if expected != there:
        other = [f"{name} is {n}, expected {expected[name]}" for name, n in there.items() if n != expected[name]]
        raise ValueError(f"weights {weights} does not fit this encoder: {'; '.join(other)}")
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"weights {weights} does not fit this encoder: {one_line(error)}") from None


def _read_file(file: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the sizes of the encoder in a file of openai-whisper, and its tensors, which stay in the file."""
    try:
        content = read_pickle(file, mapped=zipfile.is_zipfile(file))
        dims, state = content["dims"], content["model_state_dict"]
        if not isinstance(dims, Mapping) or not isinstance(state, Mapping):
            raise TypeError("dims and model_state_dict must be mappings")
        sizes = {ours: dims[theirs] for ours, theirs in _SIZES.items()}
        tensors = {name.removeprefix(_ENCODER): state[name] for name in state if name.startswith(_ENCODER)}
    except (OSError, *_DAMAGED) as error:
        raise ValueError(f"weights {file}: not a file of openai-whisper ({one_line(error)})") from None
    return sizes, tensors


def read_whisper(weights: str) -> Whisper:
    """Load a whole Whisper model, given by name or `.pt` file, with openai-whisper's own loader.

    A name is first looked for as `<name>.pt` in the folder that `OMNIKIT_WEIGHTS` names.

    Raises:
        MissingWeights: the file does not exist, or cannot be fetched by its name.
        ValueError: the file is not one of openai-whisper.
    """
    import whisper

    found = located(weights)
    weights = found if Path(found).suffix == _TORCH else weights
    if weights not in _names() and not Path(weights).is_file():
        known = ", ".join(_names())
        raise MissingWeights(f"weights {weights}: no such file (openai-whisper's names: {known})")
    try:
        return whisper.load_model(weights, device="cpu")
    except OSError as error:
        raise MissingWeights(f"weights {weights}: does not exist here and cannot be fetched ({error})") from None
    except _DAMAGED as error:
        raise ValueError(f"weights {weights}: not a file of openai-whisper ({one_line(error)})") from None


def _names() -> list[str]:
    """Return the names of the models that openai-whisper can download."""
    import whisper  # takes long to import

    return whisper.available_models()
