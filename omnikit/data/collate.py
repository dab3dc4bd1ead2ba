"""Pads training samples of any mix of tasks into one batch, or packs them: several samples in a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from omnikit.data.micro_batch import MicroBatch
from omnikit.data.packed_rows import pack_rows
from omnikit.data.padding import FRAMES, STEPS, rounded
from omnikit.interfaces import lengths_to_mask
from omnikit.label_positions import MULTIPLE, LabelPositions
from omnikit.model import AdaptedSpeech, PackedRows
from omnikit.tasks import AUDIO_START, TASK_NAMES, LabelSpan, Sample
from omnikit.tokens import IGNORE, TokenLayout

OfQuestions = Tensor | list[Tensor | None] | None
"""Features or a recording of a sample's question, or a list of those of its spoken questions if it has several turns.
"""


class BatchSizes(NamedTuple):
    """Sizes of a batch as plain numbers, so that nobody has to fetch them from the device."""

    sequences: int
    """Number N of samples, which is B without packing."""
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
    """A training batch of N samples in B padded rows: one in each, or, if they are packed, one after another.

    A sample without speech has the feature length 0. So has a sample whose features are to be computed in the training
    step from its recording in `wav`; see `with_features`. If samples have several turns, features, lengths and
    recordings are those of R spoken questions in place of N samples, and `places` says where they stand.
    """

    steps: Tensor  # [B, S, L]
    features: Tensor  # [N, T, D] encoder features, in float16 as they are stored, or in float32
    lengths: Tensor  # [N] number of feature frames
    wav: Tensor  # [b, N] recordings of those samples whose features are to be computed
    wav_lengths: Tensor  # [b] lengths of these recordings in audio samples
    recorded: Tensor  # [b] indices among the N features of those that these recordings give
    text: LabelPositions  # positions with a label in the text stream
    audio: LabelPositions  # positions with a label in an audio stream
    step_labels: Tensor  # [tasks, S] labels of the whole optimiser step by task and stream, see `MicroBatch`
    sizes: BatchSizes
    ends_step: bool = True  # whether the optimiser step follows this batch
    ids: tuple[str, ...] = ()  # ids of the manifest entries, for logs
    packed: PackedRows | None = None  # positions and samples of packed rows, for the model; None = not packed
    places: Tensor | None = None  # [R] index of each question's first feature among the B * L positions; None = R is N

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with all tensors on another device.

        From pinned memory they are copied while the caller goes on.
        """
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch with all tensors in pinned memory; a data loader with `pin_memory` calls this."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self, **{f.name: _map(function, getattr(self, f.name)) for f in fields(self)})

    @property
    def labels(self) -> Tensor:
        """Labels [B, S, L] of all streams, `IGNORE` where there is none."""
        batch, streams, length = self.steps.shape
        labels = self.steps.new_full((batch * length + 1, streams), IGNORE)  # the last row takes the padding
        for found, columns in ((self.text, slice(1)), (self.audio, slice(1, None))):
            padding = (found.labels == IGNORE).all(dim=1)
            labels[found.positions.masked_fill(padding, batch * length), columns] = found.labels
        return labels[:-1].view(batch, length, streams).transpose(1, 2)

    @property
    def has_speech(self) -> bool:
        """Whether any sample has features or a recording."""
        return self.sizes.feature_frames > 0 or self.has_recordings

    @property
    def has_recordings(self) -> bool:
        """Whether features are to be computed from the recording of any sample."""
        return self.sizes.wav_samples > 0

    def with_features(self, made: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Insert features that were computed from the batch's recordings among its stored features.

        Args:
            made: features [b, T, D] of the b samples that have a recording.
            counts: their lengths [b] in frames.

        Returns:
            Features [N, T, D], in the type of the computed ones, and lengths [N] of all samples.
        """
        ready, inside = self.features, lengths_to_mask(counts, made.shape[1])
        longest = rounded(max(made.shape[1], ready.shape[1]), FRAMES)
        features = made.new_zeros(len(ready), longest, ready.shape[2])
        features[:, : ready.shape[1]] = ready
        features[self.recorded, : made.shape[1]] = made * inside[..., None]
        return features, self.lengths.index_copy(0, self.recorded, counts.to(self.lengths.dtype))

    def speech(self, adapted: Tensor, lengths: Tensor) -> AdaptedSpeech:
        """Return adapted features [N, T, D] of this batch together with their start position in the prompts."""
        return AdaptedSpeech(adapted, lengths, torch.full_like(lengths, AUDIO_START), self.places)


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, (LabelPositions, PackedRows)):
        return type(value)(*map(function, value))
    return function(value) if isinstance(value, Tensor) else value


def collator(layout: TokenLayout, dim: int) -> Callable[[list[dict[str, Any] | None]], Batch]:
    """Return a collate function that pads items of `Samples` into a `Batch` and ignores items that are None.

    It can be pickled, so that worker processes started by any method can use it. It raises `ValueError` if all items of
    a batch are None.

    Args:
        dim: width of the encoder features.
    """
    return partial(_collate_items, layout, dim)


def _collate_items(layout: TokenLayout, dim: int, items: list[dict[str, Any] | None]) -> Batch:
    step = items if isinstance(items, MicroBatch) else None
    items = [item for item in items if item is not None]
    if not items:
        raise ValueError("none of the recordings of a batch can be read (see the log); prepare the manifest again")
    samples, features, wavs, ids = ([item[name] for item in items] for name in ("sample", "features", "wav", "id"))
    return collate(samples, features, layout, dim, wavs, ids, step)


def collate(
    samples: list[Sample],
    features: list[OfQuestions],
    layout: TokenLayout,
    dim: int,
    wavs: Sequence[OfQuestions] = (),
    ids: Sequence[str] = (),
    step: MicroBatch | None = None,
) -> Batch:
    """Pad training samples on the right, or pack them if the micro-batch says so, and return them as one batch.

    Steps are padded to a multiple of `STEPS`, features to a multiple of `FRAMES`. The training step converts features
    in float16 to float32 on its device, where this is cheaper.

    Args:
        features: encoder features [T, dim] of each sample; None for samples without speech or with a recording. Of a
            sample of several turns a list for its spoken questions, see `Sample.turn_speech`.
        dim: width of the encoder features.
        wavs: recordings [N] whose features are still to be computed, None for other samples; () = none at all. Of a
            sample of several turns a list like that of its features.
        ids: ids of the manifest entries of the samples.
        step: micro-batch that says which optimiser step the samples belong to; None if they are a whole step.
    """
    step = MicroBatch() if step is None else step
    lengths = [sample.length for sample in samples]
    rows, longest = [[b] for b in range(len(samples))], rounded(max(lengths), STEPS)
    if step.packed:
        rows, longest = pack_rows(lengths, STEPS)
    steps, starts = _rows_of_steps(samples, rows, longest, layout)
    several = any(sample.turn_labels for sample in samples)
    if several:
        features, wavs = _by_question(features), _by_question(wavs)
    padded, frames = _pad_features(features, dim)
    recorded = [b for b, wav in enumerate(wavs) if wav is not None]
    wav, wav_lengths = _pad_rows([wavs[b] for b in recorded])
    return Batch(
        torch.from_numpy(steps), padded, torch.tensor(frames), wav, torch.tensor(wav_lengths, dtype=torch.long),
        torch.tensor(recorded, dtype=torch.long),
        _label_positions(samples, slice(1), "text", starts),
        _label_positions(samples, slice(1, None), "audio", starts),
        _by_stream(_labels_of_step(samples) if step.step_labels is None else step.step_labels, layout),
        BatchSizes(
            len(samples), sum(lengths), len(rows) * longest, sum(frames),
            sum(wav_lengths), sum(sample.audio_labels for sample in samples),
        ),
        step.ends_step, tuple(ids), _packed_rows(samples, starts, len(rows), longest) if step.packed else None,
        _places(samples, starts) if several else None,
    )  # fmt: skip


def _by_question(given: Sequence[OfQuestions]) -> list[Tensor | None]:
    """Return the features or recordings of all spoken questions, and None for a sample without any."""
    return [each for own in given for each in (own or [None] if isinstance(own, list) else [own])]


def _places(samples: list[Sample], starts: list[int]) -> Tensor:
    """Return the index of each spoken question's first feature among the positions of the batch."""
    return torch.tensor([
        start + span.start for sample, start in zip(samples, starts, strict=True) for span in sample.speech_spans
    ])  # fmt: skip


def _rows_of_steps(
    samples: list[Sample], rows: list[list[int]], longest: int, layout: TokenLayout
) -> tuple[np.ndarray, list[int]]:
    """Return the steps [B, S, longest] of rows of samples, and where each sample begins among the B * L positions."""
    steps = np.empty((len(rows), layout.num_streams, longest), dtype=np.int64)
    starts = [0] * len(samples)
    for number, (row, indices) in enumerate(zip(steps, rows, strict=True)):
        end = 0
        for b in indices:
            starts[b] = number * longest + end
            begin, end = end, end + samples[b].length
            row[:, begin:end] = samples[b].whole[:, :-1]
        row[:, end:] = layout.step("pad", "pad")[:, None]
    return steps, starts


def _packed_rows(samples: list[Sample], starts: list[int], rows: int, longest: int) -> PackedRows:
    """Return the position in its sample, and the sample, of each position [rows, longest] of a packed batch."""
    positions, sequences = np.zeros(rows * longest, dtype=np.int64), np.full(rows * longest, -1, dtype=np.int64)
    for b, (sample, start) in enumerate(zip(samples, starts, strict=True)):
        positions[start : start + sample.length] = np.arange(sample.length)
        sequences[start : start + sample.length] = b
    return PackedRows(*(torch.from_numpy(each).view(rows, longest) for each in (positions, sequences)))


def _pad_features(features: list[Tensor | None], dim: int) -> tuple[Tensor, list[int]]:
    """Return features [B, T, dim], zero past their ends, and their lengths; float16 if all given ones are float16."""
    given = [each for each in features if each is not None]
    kind = np.float16 if all(each.dtype == torch.float16 for each in given) else np.float32
    lengths = [0 if each is None else len(each) for each in features]
    padded = np.zeros((len(features), rounded(max(lengths), FRAMES), dim), dtype=kind)
    for row, each in zip(padded, features, strict=True):
        if each is not None:
            row[: len(each)] = each.numpy()
    return torch.from_numpy(padded), lengths


def _pad_rows(wavs: list[Tensor]) -> tuple[Tensor, list[int]]:
    """Return waveforms as one tensor [b, N], zero past their ends, and their lengths in audio samples."""
    lengths = [len(wav) for wav in wavs]
    padded = np.zeros((len(wavs), max(lengths, default=0)), dtype=np.float32)
    for row, wav in zip(padded, wavs, strict=True):
        row[: len(wav)] = wav.numpy()
    return torch.from_numpy(padded), lengths


def _label_positions(samples: list[Sample], streams: slice, kind: str, starts: list[int]) -> LabelPositions:
    """Return the positions of labels in some streams of samples, sample by sample.

    If each row holds one sample, the result equals that of `omnikit.label_positions.label_positions`, without a search.

    Args:
        kind: name of the number of labels in each of these streams, `text` or `audio`, see `LabelSpan`.
        starts: index of the first position of each sample among all positions of the batch.
    """
    number = LabelSpan._fields.index(kind)
    total = sum(span[number] for sample in samples for span in sample.label_spans)
    size, width = rounded(total, MULTIPLE), len(samples[0].whole[streams])
    positions, tasks = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    labels = np.full((size, width), IGNORE, dtype=np.int64)
    begin = 0
    for sample, start in zip(samples, starts, strict=True):
        for span in sample.label_spans:
            if count := span[number]:
                end, first = begin + count, start + span.start
                positions[begin:end] = np.arange(first, first + count)
                labels[begin:end] = sample.whole[streams, span.start + 1 : span.start + 1 + count].T
                tasks[begin:end] = sample.task
                begin = end
    return LabelPositions(*map(torch.from_numpy, (positions, labels, np.full(width, total), tasks)))


def _labels_of_step(samples: list[Sample]) -> np.ndarray:
    """Return the number of labels [tasks, 2] of samples by task, in the text stream and in each audio stream."""
    counts = np.zeros((len(TASK_NAMES), 2), dtype=np.int64)
    for sample in samples:
        counts[sample.task] += sample.text_labels, sample.audio_labels
    return counts


def _by_stream(counts: np.ndarray, layout: TokenLayout) -> Tensor:
    """Expand numbers of labels [tasks, 2] in the text stream and in each audio stream to all streams [tasks, S]."""
    return torch.from_numpy(counts)[:, [0] + [1] * (layout.num_streams - 1)]
