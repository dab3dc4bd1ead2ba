"""Weights as openai-whisper publishes them: a `.pt` file with `dims` and `model_state_dict`, or the name of one."""

from __future__ import annotations

import pickle
from pathlib import Path

import whisper
from torch import nn
from whisper.model import AudioEncoder, Whisper

from omnikit.errors import one_line


def is_published(weights: str) -> bool:
    """Whether `weights` is one of openai-whisper's names or a `.pt` file."""
    return weights in whisper.available_models() or Path(weights).suffix == ".pt"


def read_encoder(weights: str, encoder: AudioEncoder) -> None:
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
    if weights not in whisper.available_models() and not Path(weights).is_file():
        known = ", ".join(whisper.available_models())
        raise ValueError(f"weights {weights}: no such file (openai-whisper's names: {known})")
    try:
        return whisper.load_model(weights, device="cpu")
    except OSError as error:
        raise ValueError(f"weights {weights}: not here, and not to be fetched ({error})") from None
    except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"weights {weights}: not a file of openai-whisper ({one_line(error)})") from None


def encoder_sizes(encoder: AudioEncoder) -> dict[str, int]:
    """The options of `WhisperEncoder` that decide about shapes."""
    n_ctx, width = encoder.positional_embedding.shape
    blocks: nn.ModuleList = encoder.blocks
    heads = blocks[0].attn.n_head if len(blocks) else 1
    return {"n_mels": encoder.conv1.in_channels, "n_ctx": n_ctx, "width": width, "heads": heads, "layers": len(blocks)}
