"""Recordings whose features the frozen encoder computes in the training step instead of before the training."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, empty_like, nn

from omnikit.data.augment import Augment, SeededAugment
from omnikit.data.manifest_reader import ManifestEntry
from omnikit.errors import one_line
from omnikit.interfaces import AudioEncoder


class UnusableRecording(ValueError):
    """Error raised when a recording whose features the training step should compute cannot be used."""


def can_be_live(encoder: AudioEncoder) -> bool:
    """Return whether an encoder says how many features a recording has, as is needed to compute them in the step."""
    return type(encoder).num_frames is not AudioEncoder.num_frames


def accepts(encoder: AudioEncoder) -> Callable[[int], bool]:
    """Return a function that says whether an encoder takes recordings of a number of samples.

    An encoder that cannot say it is taken to accept all.
    """

    def accepted(samples: int) -> bool:
        try:
            encoder.num_frames(samples)
        except NotImplementedError:
            return True
        except ValueError:
            return False
        return True

    return accepted


def load_wav(
    encoder: AudioEncoder, entry: ManifestEntry, augment: SeededAugment | None = None, copy_number: int = 0
) -> Tensor:
    """Return the waveform [N] of an entry's question, from which the training step computes features.

    Args:
        augment: effects that change the waveform; None = it is used as it is.
        copy_number: number of the augmented copy.

    Raises:
        UnusableRecording: the recording cannot be read, or the encoder refuses its length.
    """
    try:
        wav = entry.a1.load(encoder.sample_rate)
        encoder.num_frames(len(wav))
    except ValueError as error:
        raise UnusableRecording(f"entry {entry.id} is skipped in its batch: {one_line(error)}") from None
    return wav if augment is None else augmented(wav, encoder, entry.id, entry.dialog, augment, copy_number)


def augmented(
    wav: Tensor, encoder: AudioEncoder, name: str, dialog: str, augment: SeededAugment, copy_number: int
) -> Tensor:
    """Return an augmented copy [N'] of a waveform [N] at an encoder's sample rate, of a length that it accepts.

    Args:
        name: id of the manifest entry of the recording.
        dialog: name of the conversation that it belongs to; "" = none.
    """
    made = augment(wav.numpy(), encoder.sample_rate, name, copy_number, dialog=dialog, accepts=accepts(encoder))
    return torch.from_numpy(made)


class LongestFrames:
    """Numbers of an encoder for recordings that are augmented: as many frames as the effects can make of a recording.

    Batches are planned by these numbers, so that they stay within their limits.
    """

    def __init__(self, encoder: AudioEncoder, augment: Augment):
        self.encoder, self.augment, self.sample_rate = encoder, augment, encoder.sample_rate

    def num_frames(self, samples: int) -> int:
        """Return the largest number of features of a recording that has N samples before it is augmented.

        Raises:
            ValueError: the encoder takes no recording of N samples.
        """
        self.encoder.num_frames(samples)
        longest = self.augment.longest(samples, self.sample_rate, accepts(self.encoder))
        return self.encoder.num_frames(longest)


def expected_frames(encoder: AudioEncoder | LongestFrames, entry: ManifestEntry) -> int | str:
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
