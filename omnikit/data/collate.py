"""Pads training samples of any mix of tasks into one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from omnikit.data.micro_batch import MicroBatch
from omnikit.interfaces import lengths_to_mask
from omnikit.label_positions import LabelPositions, label_positions
from omnikit.model import AdaptedSpeech
from omnikit.tasks import AUDIO_START, TASK_NAMES, Sample
from omnikit.tokens import IGNORE, TokenLayout

STEPS, FRAMES = 8, 32
"""Multiples to which the length of a batch is padded: in steps of sequences, and in frames of features.

Few, recurring shapes are much faster on a CPU: oneDNN compiles a kernel for each shape, and memory fragments less.
"""


def rounded(length: int | np.ndarray, multiple: int) -> int | np.ndarray:
    """Return a length, or each length of an array, rounded up to a multiple."""
    return -(-length // multiple) * multiple


class BatchSizes(NamedTuple):
    """Sizes of a batch as plain numbers, so that nobody has to fetch them from the device."""

    sequences: int
    """Number B of samples."""
    positions: int
    """Number of positions without padding."""
    padded: int
    """Number of positions with padding, B * L."""
    feature_frames: int
    """Number of stored feature frames without padding."""
    wav_samples: int
    """Number of audio samples, without padding, of the recordings whose features are to be computed."""
    code_steps: int
    """Number of labels in one audio stream."""


@dataclass
class Batch:
    """A training batch of B padded samples.

    A sample without speech has the feature length 0. So has a sample whose features are to be computed in the training
    step from its recording in `wav`; see `with_features`.
    """

    steps: Tensor  # [B, S, L]
    labels: Tensor  # [B, S, L]
    features: Tensor  # [B, T, D] encoder features
    lengths: Tensor  # [B] number of feature frames
    wav: Tensor  # [B, N] recordings whose features are to be computed
    samples: Tensor  # [B] lengths of these recordings in audio samples; 0 where there is none
    text: LabelPositions  # positions with a label in the text stream
    audio: LabelPositions  # positions with a label in an audio stream
    step_labels: Tensor  # [tasks, S] labels of the whole optimiser step by task and stream, see `MicroBatch`
    sizes: BatchSizes
    ends_step: bool = True  # whether the optimiser step follows this batch
    ids: tuple[str, ...] = ()  # ids of the manifest entries, for logs

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with all tensors on another device."""
        return replace(self, **{f.name: _moved(getattr(self, f.name), device) for f in fields(self)})

    @property
    def has_speech(self) -> bool:
        return bool(((self.lengths > 0) | self.to_encode).any())

    @property
    def to_encode(self) -> Tensor:
        """Mask [B] of the samples that have a recording in place of features."""
        return self.samples > 0

    def with_features(self, made: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Insert features that were computed from the batch's recordings among its stored features.

        Args:
            made: features [b, T, D] of the b samples that have a recording.
            counts: their lengths [b] in frames.

        Returns:
            Features [B, T, D] and lengths [B] of all samples.
        """
        at, ready, inside = self.to_encode, self.features, lengths_to_mask(counts, made.shape[1])
        longest = rounded(max(made.shape[1], ready.shape[1]), FRAMES)
        features = ready.new_zeros(len(at), longest, ready.shape[2])
        features[:, : ready.shape[1]] = ready
        features[at, : made.shape[1]] = (made * inside[..., None]).to(features.dtype)
        return features, self.lengths.masked_scatter(at, counts.to(self.lengths.dtype))

    def speech(self, adapted: Tensor, lengths: Tensor) -> AdaptedSpeech:
        """Return adapted features [B, T, D] of this batch together with their start position in the prompts."""
        return AdaptedSpeech(adapted, lengths, torch.full_like(lengths, AUDIO_START))


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, LabelPositions):
        return LabelPositions(*(each.to(device) for each in value))
    return value.to(device) if isinstance(value, Tensor) else value


def collate(
    samples: list[Sample],
    features: list[Tensor | None],
    layout: TokenLayout,
    dim: int,
    wavs: Sequence[Tensor | None] = (),
    ids: Sequence[str] = (),
    step: MicroBatch | None = None,
) -> Batch:
    """Pad training samples on the right and return them as one batch.

    Steps are padded to a multiple of `STEPS`, features to a multiple of `FRAMES`.

    Args:
        features: encoder features [T, dim] of each sample; None for samples without speech or with a recording.
        dim: width of the encoder features.
        wavs: recordings [N] whose features are still to be computed, None for other samples; () = none at all.
        ids: ids of the manifest entries of the samples.
        step: micro-batch that says which optimiser step the samples belong to; None if they are a whole step.
    """
    step = MicroBatch() if step is None else step
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
    tasks = torch.tensor([sample.task for sample in samples])
    text, audio = label_positions(labels[:, :1], tasks), label_positions(labels[:, 1:], tasks)
    return Batch(
        steps, labels, padded, lengths, pad_sequence(recorded, batch_first=True), counts, text, audio,
        _labels_of_step(labels, tasks) if step.step_labels is None else _by_stream(step.step_labels, layout),
        BatchSizes(
            len(samples), sum(s.steps.shape[1] for s in samples), len(samples) * longest, int(lengths.sum()),
            int(counts.sum()), int((labels[:, 1] != IGNORE).sum()),
        ),
        step.ends_step, tuple(ids),
    )  # fmt: skip


def _labels_of_step(labels: Tensor, tasks: Tensor) -> Tensor:
    """Return the number of labels [tasks, S] of labels [B, S, L] by task and stream."""
    return labels.new_zeros(len(TASK_NAMES), labels.shape[1]).index_add(0, tasks, (labels != IGNORE).sum(dim=2))


def _by_stream(counts: np.ndarray, layout: TokenLayout) -> Tensor:
    """Expand numbers of labels [tasks, 2] in the text stream and in each audio stream to all streams [tasks, S]."""
    return torch.from_numpy(counts)[:, [0] + [1] * (layout.num_streams - 1)]
