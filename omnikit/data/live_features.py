"""Recordings whose features the frozen encoder computes in the training step instead of before the training."""

from __future__ import annotations

import copy

from torch import Tensor, empty_like, nn

from omnikit.data.manifest_reader import ManifestEntry
from omnikit.errors import one_line
from omnikit.interfaces import AudioEncoder


class UnusableRecording(ValueError):
    """Error raised when a recording whose features the training step should compute cannot be used."""


def can_be_live(encoder: AudioEncoder) -> bool:
    """Return whether an encoder says how many features a recording has, as is needed to compute them in the step."""
    return type(encoder).num_frames is not AudioEncoder.num_frames


def load_wav(encoder: AudioEncoder, entry: ManifestEntry) -> Tensor:
    """Return the waveform [N] of an entry's question, from which the training step computes features.

    Raises:
        UnusableRecording: the recording cannot be read, or the encoder refuses its length.
    """
    try:
        wav = entry.a1.load(encoder.sample_rate)
        encoder.num_frames(len(wav))
    except ValueError as error:
        raise UnusableRecording(f"entry {entry.id} is skipped in its batch: {one_line(error)}") from None
    return wav


def expected_frames(encoder: AudioEncoder, entry: ManifestEntry) -> int | str:
    """Return the number of feature frames of an entry's recording, estimated from its length in seconds.

    Returns:
        The number of frames, or the reason (a key of `skipped.REASONS`) why the recording cannot be used.
    """
    seconds = entry.duration
    if not seconds:
        found = entry.a1.check()
        if found.problem:
            return found.problem
        seconds = found.seconds
    try:
        return encoder.num_frames(round(seconds * encoder.sample_rate))
    except ValueError:
        return "refused"


def without_weights(encoder: AudioEncoder) -> AudioEncoder:
    """Return a copy of an encoder without the values of its weights, which is quickly sent to another process."""
    tensors = [*encoder.parameters(), *encoder.buffers()]
    blank = {id(tensor): _blank(tensor) for tensor in tensors}
    return copy.deepcopy(encoder, blank)


def _blank(tensor: Tensor) -> Tensor:
    blank = empty_like(tensor, device="meta")
    return nn.Parameter(blank, requires_grad=False) if isinstance(tensor, nn.Parameter) else blank
