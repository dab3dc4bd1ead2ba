"""From samples of any mix of tasks to one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from omnikit.interfaces import lengths_to_mask
from omnikit.model import AdaptedSpeech
from omnikit.tasks import AUDIO_START, Sample
from omnikit.tokens import IGNORE, TokenLayout

STEPS, FRAMES = 8, 32
"""Batches are filled up to multiples of so many steps and feature frames. On a CPU, few shapes that come again are much
faster than new ones: oneDNN compiles a kernel for each shape, and the allocator cuts its memory to pieces."""


def rounded(length: int | np.ndarray, multiple: int) -> int | np.ndarray:
    """The next multiple, of a number or of each of an array."""
    return -(-length // multiple) * multiple


@dataclass
class Batch:
    """A training batch. Rows without speech have no features and the length 0; likewise those whose features are still
    to be made of a recording, see `with_features`."""

    steps: Tensor  # [B, S, L]
    labels: Tensor  # [B, S, L]
    features: Tensor  # [B, T, D] encoder features
    lengths: Tensor  # [B]
    wav: Tensor  # [B, N] recordings without features
    samples: Tensor  # [B] their lengths; 0 where there is none
    ids: tuple[str, ...] = ()  # of the entries, for logs

    def to(self, device: torch.device | str) -> Batch:
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{name: value.to(device) for name, value in tensors.items()})

    @property
    def has_speech(self) -> bool:
        return bool(((self.lengths > 0) | self.to_encode).any())

    @property
    def to_encode(self) -> Tensor:
        """Rows of which there is a recording in place of features [B], bool."""
        return self.samples > 0

    def with_features(self, made: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Features made of the recordings [b, T, D] with lengths [b] -> those of all rows [B, T, D], lengths [B]."""
        at, ready, inside = self.to_encode, self.features, lengths_to_mask(counts, made.shape[1])
        longest = rounded(max(made.shape[1], ready.shape[1]), FRAMES)
        features = ready.new_zeros(len(at), longest, ready.shape[2])
        features[:, : ready.shape[1]] = ready
        features[at, : made.shape[1]] = (made * inside[..., None]).to(features.dtype)
        return features, self.lengths.masked_scatter(at, counts.to(self.lengths.dtype))

    def speech(self, adapted: Tensor, lengths: Tensor) -> AdaptedSpeech:
        """Adapted features of this batch, placed where its prompts expect them."""
        return AdaptedSpeech(adapted, lengths, torch.full_like(lengths, AUDIO_START))


def collate(
    samples: list[Sample],
    features: list[Tensor | None],
    layout: TokenLayout,
    dim: int,
    wavs: Sequence[Tensor | None] = (),
    ids: Sequence[str] = (),
) -> Batch:
    """Samples and the encoder features [T, dim] of those that are given speech -> a batch padded on the right
    to a multiple of `STEPS`, its features to one of `FRAMES`.

    Args:
        wavs: recordings [N] of samples that are given speech without features; () = there are none.
        ids: names of the entries that the samples were made of.
    """
    longest = rounded(max(s.steps.shape[1] for s in samples), STEPS)
    steps = layout.pads()[None, :, None].repeat(len(samples), 1, longest)
    labels = torch.full_like(steps, IGNORE)
    for b, sample in enumerate(samples):
        steps[b, :, : sample.steps.shape[1]] = sample.steps
        labels[b, :, : sample.labels.shape[1]] = sample.labels
    given = [torch.zeros(0, dim) if f is None else f.float() for f in features]
    lengths = torch.tensor([f.shape[0] for f in given])
    padded = pad_sequence(given, batch_first=True)
    padded = nn.functional.pad(padded, (0, 0, 0, -padded.shape[1] % FRAMES))
    recorded = [torch.zeros(0) if wav is None else wav for wav in wavs or [None] * len(samples)]
    counts = torch.tensor([len(wav) for wav in recorded])
    return Batch(steps, labels, padded, lengths, pad_sequence(recorded, batch_first=True), counts, tuple(ids))
