"""Builds training samples from the indices of manifest entries, and from their stored or cached features and codes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from omnikit.data import dialogs, source_index
from omnikit.data.augment import SeededAugment
from omnikit.data.collate import Batch, collator
from omnikit.data.encoded_entries import EncodedEntries
from omnikit.data.live_features import UnusableRecording, load_wav, without_weights
from omnikit.data.manifest_reader import EntryFields, ListedEntries, answer_field, codes_field
from omnikit.data.micro_batch import MicroBatch
from omnikit.data.sample_table import SampleTable, for_each
from omnikit.data.skipped import Skipped
from omnikit.data.source_index import SourceIndex
from omnikit.hparams.recipe import names_of
from omnikit.interfaces import AudioEncoder
from omnikit.model import OmniLM
from omnikit.tasks import (
    TASK_NAMES,
    TASKS,
    Sample,
    Task,
    asked_in,
    label_counts,
    make_dialog,
    make_sample,
    prompt_length,
)
from omnikit.turns import heard_part

logger = logging.getLogger(__name__)
Item = dict[str, Any]
"""One item of the training data set, before items are padded to a batch.

Keys: `id` of the manifest entry; `sample`, a `Sample`; `features` [T, D] of the encoder, or `wav` [N], a recording from
which the training step computes them. Absent values are None. Of a dialog, `id` is that of its first entry, and
`features` and `wav` are lists for its spoken questions.
"""
INTERRUPTED = 0.1
"""Default share of the dialogs of a source in which an answer is cut to what was heard of it."""


@dataclass(frozen=True)
class Source:
    """The manifest entries of one source of a recipe, the tasks that they serve, and their texts, features and codes.

    Features and codes are those stored in the manifest if the system's encoder and codec computed them, and otherwise
    those of the recordings. With `live`, the training step computes features from recordings.
    """

    entries: EntryFields = field(default_factory=ListedEntries)
    tasks: tuple[str, ...] = ()
    index: SourceIndex = field(default_factory=lambda: SourceIndex(()))
    """Token ids of the texts, and lengths of stored features and codes."""
    features: EncodedEntries | None = None
    """Cached features of recordings."""
    codes: Mapping[str, EncodedEntries] = field(default_factory=dict)
    """Cached codes of recordings by the field `codes1` or `codes` that they stand in for."""
    live: AudioEncoder | None = None
    """The system's encoder if the training step computes features."""
    live_frames: np.ndarray | None = None
    """Number of frames that the training step is expected to compute for each entry, -1 without any."""
    name: str = ""
    """Key of the source in the recipe's `sources`, for messages."""
    mixed: float = 0.0
    """Share of the turns of dialogs whose question is given in the other kind than the task's, where there is one."""
    interrupted: float = INTERRUPTED
    """Share of the dialogs in which an answer is cut to what was heard of it."""
    augment: SeededAugment | None = None
    """Effects that change the recordings of which the training step computes features."""

    def feature_frames(self) -> np.ndarray:
        """Return the number of feature frames of the question of each entry, negative where it has none [entries]."""
        stored = self.index.column(source_index.FEATURES)
        computed = self.live_frames
        if self.features is not None:
            computed = self.features.frames(len(stored), axis=0)
        return stored if computed is None else np.where(stored >= 0, stored, computed)

    def code_frames(self, task: Task) -> np.ndarray:
        """Return the number of frames of the spoken answer of each entry, negative where it has none [entries]."""
        name = codes_field(task)
        stored = self.index.column(source_index.CODES1 if name == "codes1" else source_index.CODES)
        made = self.codes.get(name)
        return stored if made is None else np.where(stored >= 0, stored, made.frames(len(stored), axis=1))


class SampleMaker:
    """Builds the training samples of a source from the indices of its manifest entries.

    It holds no network, so that it is quickly sent to the worker processes of a data loader, and calls no tokenizer.

    Args:
        model: model whose token layout, pattern and adapter stride are used.
        source: source of the entries.

    Attributes:
        step: number of the optimiser step that samples are made for, with which their augmentation changes.
    """

    step = 0

    def __init__(self, model: OmniLM, source: Source):
        self.layout, self.pattern, self.stride = model.layout, model.pattern, model.adapter.stride
        self.source, self.live = source, None if source.live is None else without_weights(source.live)

    def __call__(self, entry: int, task: Task) -> Item:
        """Return the training sample of an entry, given by its index, with its features or its recording.

        Raises:
            UnusableRecording: the training step is to encode the recording, which cannot be read.
        """
        sample, features, wav = self._turn(entry, task, task.given == "speech")
        return {"id": self.source.entries.id_of(entry), "sample": sample, "features": features, "wav": wav}

    def dialog(self, turns: list[tuple[int, bool, int]], task: Task) -> Item:
        """Return the training sample of a dialog, given the values of its turns in `omnikit.data.dialogs.Turns`.

        Turns that repeat a cut answer follow it directly, and end like any other.

        Raises:
            UnusableRecording: the training step is to encode a recording, which cannot be read.
        """
        # only one answer of a dialog is cut: a cut one directly after another repeats it
        repeats = [False, *(heard != dialogs.WHOLE for _, _, heard in turns[:-1])]
        made = [self._turn(entry, task, *how, ended=again) for (entry, *how), again in zip(turns, repeats, strict=True)]
        features, wavs = ([turn[i] for turn in made if turn[0].audio_frames] for i in (1, 2))
        sample = make_dialog(task, [turn[0] for turn in made])
        return {"id": self.source.entries.id_of(turns[0][0]), "sample": sample, "features": features, "wav": wavs}

    def _turn(
        self, entry: int, task: Task, spoken: bool, heard: int = dialogs.WHOLE, ended: bool = True
    ) -> tuple[Sample, Tensor | None, Tensor | None]:
        """Return the sample of an entry, with the features or the recording of its question.

        Args:
            spoken: whether the question is given as speech, whatever the kind of the task's questions.
            heard: number of frames that are heard of the answer, or of text ids that are kept of a written one.
            ended: whether the end of the part that is heard has labels.
        """
        source, wav, features, frames = self.source, None, None, None
        if spoken:
            wav = self._wav(entry)
            features = self._features(entry) if wav is None else None
            frames = len(features) if wav is None else self.live.num_frames(len(wav))
        answer = source.index.tokens(answer_field(task), entry)
        codes = self._codes(entry, codes_field(task)) if task.speaks else None
        if heard != dialogs.WHOLE:
            answer, codes = heard_part(answer, codes, heard)
        sample = make_sample(
            asked_in(task, "speech" if spoken else "text"),
            self.layout,
            self.pattern,
            question=None if spoken else source.index.tokens("t1", entry),
            audio_frames=None if frames is None else -(-frames // self.stride),
            answer=answer,
            codes=codes,
            interrupted=heard != dialogs.WHOLE and not ended,
        )
        return sample, features, wav

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "source": replace(self.source, live=None, live_frames=None)}

    def _features(self, entry: int) -> Tensor:
        stored = self.source.index.value(source_index.FEATURES, entry) >= 0
        return self.source.entries.features_of(entry) if stored else self.source.features[entry]

    def _wav(self, entry: int) -> Tensor | None:
        if self.live is None or self.source.index.value(source_index.FEATURES, entry) >= 0:
            return None
        return load_wav(self.live, self.source.entries[entry], self.source.augment, self.step)

    def _codes(self, entry: int, name: str) -> Tensor:
        column = source_index.CODES1 if name == "codes1" else source_index.CODES
        stored = self.source.index.value(column, entry) >= 0
        return self.source.entries.codes_of(entry, name) if stored else self.source.codes[name][entry]


def codec_name(model: OmniLM) -> str | None:
    """Return the name (`--codec`) of a model's codec; None for a model that was not built from a recipe."""
    recipe = getattr(model, "recipe", "")
    return names_of(recipe).get("codec") if recipe else None


class Samples(Dataset):
    """A data set of training samples that are built on access; None for one whose recording can then not be used.

    Only the origin of each sample is kept in memory, so that there can be many millions.

    Args:
        makers: builder of the samples of each source.
        table: origin, length and labels of each sample.
        turns: turns of those samples that are dialogs; None = none is.
    """

    def __init__(self, makers: list[SampleMaker], table: SampleTable, turns: dialogs.Turns | None = None):
        self.makers, self.table, self.turns = makers, table, turns

    def __len__(self) -> int:
        return len(self.table)

    @property
    def tasks(self) -> np.ndarray:
        """Name of the task of each sample [samples]."""
        return np.array(TASK_NAMES)[self.table.tasks]

    @property
    def lengths(self) -> np.ndarray:
        """Number of steps of each sample [samples]."""
        return self.table.lengths

    def __getitem__(self, index: int) -> Item | None:
        make, task = self.makers[int(self.table.sources[index])], TASKS[TASK_NAMES[self.table.tasks[index]]]
        turns = [] if self.turns is None else self.turns.of(index)
        try:
            return make.dialog(turns, task) if turns else make(int(self.table.entries[index]), task)
        except UnusableRecording as error:
            logger.warning("%s", error)
            return None

    def __getitems__(self, indices: list[int]) -> list[Item | None]:
        """Return the samples of a micro-batch as a `MicroBatch`, or those of any other list of indices as a list."""
        for maker in self.makers:
            maker.step = indices.step if isinstance(indices, MicroBatch) else 0
        items = [self[index] for index in indices]
        return indices.with_samples(items) if isinstance(indices, MicroBatch) else items


def make_dataset(
    model: OmniLM, sources: list[Source], tasks: dict[str, float], longest: int | None = None, seed: int = 0
) -> Samples:
    """Return the data set of all samples of the tasks with a positive weight, ordered by source, task and entry.

    Dialogs come after the single entries of their source and task.

    Args:
        tasks: weight of each task in the mix.
        longest: maximum number of steps; longer samples are skipped, and dialogs cut. None = no limit.
        seed: seed by which the typed questions and the interrupted answers of dialogs are chosen.

    Raises:
        ValueError: there is no sample.
    """
    parts, too_long = [(SampleTable(*np.zeros((6, 0), np.int32)), dialogs.Turns.none(0))], 0
    for number, source in enumerate(sources):
        wanted = [TASKS[name] for name in source.tasks if tasks.get(name, 0) > 0]
        usable = {task.name: _usable(source, task) for task in wanted}
        _warn_of_refused(source, wanted, usable)
        grouped, skipped = _dialogs(source, wanted)
        for task in wanted:
            singles = _measured(model, number, source, task, usable[task.name] & ~_in_dialogs(source, task))
            kept = np.ones(len(singles), bool) if longest is None else singles.lengths <= longest
            too_long += int((~kept).sum())
            parts.append((singles.select(kept), dialogs.Turns.none(int(kept.sum()))))
            if grouped is not None and not task.repeats:
                limits = {"longest": longest, "seed": seed}
                parts.append(dialogs.measured(model, number, source, task, grouped, skipped, **limits))
        if skipped:
            logger.warning("sources.%s: turns of dialogs: %s", source.name, skipped)
    tables, turns = zip(*parts, strict=True)
    table = SampleTable(*(np.concatenate(columns) for columns in zip(*(vars(p).values() for p in tables), strict=True)))
    if not len(table):
        wanted = ", ".join(name for name, weight in tasks.items() if weight > 0)
        raise ValueError(f"no entry of the sources serves a task of {wanted}; {too_long} samples are too long")
    if too_long:
        logger.warning("%d samples of more than %d steps skipped", too_long, longest)
    joined = dialogs.joined(turns)
    return Samples([SampleMaker(model, source) for source in sources], table, joined if len(joined.entries) else None)


def _dialogs(source: Source, tasks: list[Task]) -> tuple[dialogs.Dialogs | None, Skipped]:
    """Return the dialogs of a source if one of the tasks answers questions, and counts of unusable turns."""
    skipped = Skipped()
    if all(task.repeats for task in tasks):
        return None, skipped
    return dialogs.group(source.index, source.entries, skipped), skipped


def _in_dialogs(source: Source, task: Task) -> np.ndarray:
    """Return a mask [entries] of the entries that are no samples of their own, as turns of dialogs."""
    turns = source.index.column(source_index.TURN)
    return np.zeros(len(turns), bool) if task.repeats else turns != source_index.ABSENT


def _texts(task: Task) -> set[str]:
    """Return the manifest fields whose texts are in the samples of a task."""
    return {answer_field(task), *(["t1"] if task.given == "text" else [])}


def _usable(source: Source, task: Task) -> np.ndarray:
    """Return a mask [entries] of the entries that have all texts, features and codes that a task needs.

    A text counts even if the tokenizer refuses it.
    """
    usable = source.index.counts(answer_field(task)) != source_index.ABSENT
    if task.given == "speech":
        usable &= source.feature_frames() >= 0
    return usable & (source.code_frames(task) >= 0) if task.speaks else usable


def _refused(source: Source, task: Task) -> np.ndarray:
    """Return a mask [entries] of the entries with a text of a task that the tokenizer refuses."""
    return np.any([source.index.counts(name) == source_index.REFUSED for name in _texts(task)], axis=0)


def _warn_of_refused(source: Source, tasks: list[Task], usable: Mapping[str, np.ndarray]) -> None:
    lost = [usable[task.name] & _refused(source, task) for task in tasks]
    entries = np.flatnonzero(np.any(lost, axis=0)) if lost else ()
    if len(entries):
        names = sorted(set().union(*map(_texts, tasks)))
        reasons = (source.index.refusal(name, int(entry)) for entry in entries for name in names)
        first = next(filter(None, reasons), f"entry {source.entries.id_of(int(entries[0]))}")
        count = len(entries)
        logger.warning("sources.%s: %d entries refused by the tokenizer (such as %s)", source.name, count, first)


def _measured(model: OmniLM, number: int, source: Source, task: Task, usable: np.ndarray) -> SampleTable:
    """Return the table of a source's samples of one task, without building the samples.

    Args:
        number: index of the source.
        usable: mask [entries] of the entries that have all that the task needs.
    """
    entries = np.flatnonzero(usable & ~_refused(source, task)).astype(np.int32)
    text = source.index.counts(answer_field(task))[entries]
    given = (
        model.num_speech_positions(source.feature_frames()[entries])
        if task.given == "speech"
        else source.index.counts("t1")[entries]
    )
    spoken = np.zeros_like(text)
    if task.speaks:
        spoken = for_each(
            lambda frames: label_counts(task, model.pattern, text=0, frames=frames)[1],
            source.code_frames(task)[entries],
        )
    lengths = prompt_length(given) + np.maximum(text, spoken - 1)  # `sample_length`: the answer ends with its last mark
    written = text + 1 if task.writes else np.zeros_like(text)
    columns = (np.full_like(entries, number), entries, np.full_like(entries, TASK_NAMES.index(task.name)))
    return SampleTable(*(column.astype(np.int32) for column in (*columns, lengths, written, spoken)))


def collate_items(model: OmniLM) -> Callable[[list[Item | None]], Batch]:
    """Return the collate function for items of a model's samples, see `omnikit.data.collate.collator`."""
    return collator(model.layout, model.encoder.dim)
