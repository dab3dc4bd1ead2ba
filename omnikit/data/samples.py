"""Builds training samples from manifest entries and from the features and codes of their recordings."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from omnikit.data.array_cache import ArrayStore
from omnikit.data.collate import Batch, collator
from omnikit.data.manifest_reader import Codes, Features, ManifestEntry
from omnikit.data.micro_batch import MicroBatch
from omnikit.data.sample_table import SampleTable
from omnikit.errors import one_line
from omnikit.hparams.recipe import names_of
from omnikit.interfaces import AudioEncoder, Tokenizer
from omnikit.model import OmniLM
from omnikit.tasks import TASK_NAMES, TASKS, Task, label_counts, make_sample, sample_length

logger = logging.getLogger(__name__)
Item = dict[str, Any]
"""One item of the training data set, before items are padded to a batch.

Keys: `id` of the manifest entry; `sample`, a `Sample`; `features` [T, D] of the encoder, or `wav` [N], a recording from
which the training step computes them. Absent values are None.
"""
_TOGETHER = 2048  # entries whose texts are tokenized together


class UnusableRecording(ValueError):
    """Error raised when a recording whose features the training step should compute cannot be used."""


@dataclass(frozen=True)
class SpeechInputs:
    """Access to the encoder features of manifest entries, or to recordings that the training step is to encode.

    Features stored in the manifest are used if the system's encoder computed them. Otherwise features are taken from
    the cache or, with `live`, the recording is given to the training step.
    """

    encoder: str | None = None
    """Fingerprint of the system's encoder; None if no manifest entry has stored features."""
    made: ArrayStore | None = None
    """Cached encoder features by recording key; None if no features are cached."""
    live: AudioEncoder | None = None
    """The system's encoder if features are computed in the training step; None if they are cached."""

    def own(self, entry: ManifestEntry) -> Features | None:
        """Return the features stored in the manifest entry if the system's encoder computed them, else None."""
        return entry.features if entry.features is not None and entry.features.encoder == self.encoder else None

    def __contains__(self, entry: ManifestEntry) -> bool:
        if self.own(entry) is not None:
            return True
        if self.live is not None:
            return entry.a1 is not None and isinstance(self.expected(entry), int)
        return entry.a1 is not None and _holds(self.made, entry.a1.key)

    def __getitem__(self, entry: ManifestEntry) -> Tensor:
        """Return the stored or cached encoder features [T, D] (float16) of a manifest entry."""
        own = self.own(entry)
        return self.made[entry.a1.key] if own is None else own.load()

    def frames(self, entry: ManifestEntry) -> int:
        """Return the number of feature frames T of a manifest entry without reading features.

        For a recording that the training step encodes, T is estimated from its length in seconds.
        """
        own = self.own(entry)
        if own is not None:
            return own.frames
        return self.made.shape(entry.a1.key)[0] if self.live is None else self.expected(entry)

    def wav(self, entry: ManifestEntry) -> Tensor | None:
        """Return the waveform [N] from which the training step computes features; None where the entry has features.

        Raises:
            UnusableRecording: the recording cannot be read, or the encoder refuses its length.
        """
        if self.live is None or self.own(entry) is not None:
            return None
        try:
            wav = entry.a1.load(self.live.sample_rate)
            self.live.num_frames(len(wav))
        except ValueError as error:
            raise UnusableRecording(f"entry {entry.id} is skipped in its batch: {one_line(error)}") from None
        return wav

    def expected(self, entry: ManifestEntry) -> int | str:
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
            return self.live.num_frames(round(seconds * self.live.sample_rate))
        except ValueError:
            return "refused"


@dataclass(frozen=True)
class Source:
    """The manifest entries of one source of a recipe, the tasks that they serve, and their features and codes."""

    entries: Sequence[ManifestEntry]
    tasks: tuple[str, ...]
    speech_inputs: SpeechInputs = field(default_factory=SpeechInputs)
    codes: ArrayStore | None = None
    name: str = ""
    """Key of the source in the recipe's `sources`, for messages."""


class SampleMaker:
    """Builds the training sample of a source's manifest entry for a task.

    The codes of the answer are those stored in the entry if the model's codec computed them, and otherwise the cached
    ones of its recording.

    Args:
        model: model whose token layout, pattern, tokenizer and adapter stride are used.
        source: source whose cached features and codes are used.
    """

    def __init__(self, model: OmniLM, source: Source):
        self.model, self.speech_inputs, self.codes = model, source.speech_inputs, source.codes
        self.codec = codec_name(model)

    def usable(self, entry: ManifestEntry, task: Task) -> bool:
        """Return whether an entry has all fields that a task needs, and the features and codes of its recordings."""
        if not entry.serves(task):
            return False
        spoken = entry.target_recording(task)
        return (task.given != "speech" or entry in self.speech_inputs) and (
            not task.speaks
            or self._own_codes(entry, task) is not None
            or (spoken is not None and _holds(self.codes, spoken.key))
        )

    def texts(self, entry: ManifestEntry, task: Task) -> list[str]:
        """Return the texts in the sample of an entry for a task: the answer and, if it is text, the question."""
        return [entry.target_text(task), *([entry.t1] if task.given == "text" else [])]

    def measure(self, entry: ManifestEntry, task: Task, tokens: dict[str, int]) -> tuple[int, int, int]:
        """Return the length and the labels of the training sample of an entry and a task, without building the sample.

        Args:
            tokens: mapping from each text of the sample to its number of tokens.

        Returns:
            Number of steps, number of labels in the text stream, number of labels in each audio stream.
        """
        given = (
            self.model.num_speech_positions(self.speech_inputs.frames(entry))
            if task.given == "speech"
            else tokens[entry.t1]
        )
        frames = self._frames(entry, task) if task.speaks else 0
        answer = {"text": tokens[entry.target_text(task)], "frames": frames}
        length = sample_length(task, self.model.pattern, given=given, **answer)
        return length, *label_counts(task, self.model.pattern, **answer)

    def __call__(self, entry: ManifestEntry, task: Task) -> Item:
        """Return the training sample of a manifest entry for a task, with its features or its recording.

        Raises:
            UnusableRecording: the recording cannot be used, see `SpeechInputs.wav`.
        """
        encode = self.model.llm.tokenizer.encode
        features = wav = frames = None
        if task.given == "speech":
            wav = self.speech_inputs.wav(entry)
            features = self.speech_inputs[entry] if wav is None else None
            frames = len(features) if wav is None else self.speech_inputs.live.num_frames(len(wav))
        sample = make_sample(
            task,
            self.model.layout,
            self.model.pattern,
            question=encode(entry.t1) if task.given == "text" else None,
            audio_frames=None if frames is None else self.model.num_speech_positions(frames),
            answer=encode(entry.target_text(task)),
            codes=self._codes(entry, task) if task.speaks else None,
        )
        return {"id": entry.id, "sample": sample, "features": features, "wav": wav}

    def _own_codes(self, entry: ManifestEntry, task: Task) -> Codes | None:
        codes = entry.target_codes(task)
        return codes if codes is not None and codes.codec == self.codec else None

    def _frames(self, entry: ManifestEntry, task: Task) -> int:
        own = self._own_codes(entry, task)
        return self.codes.shape(entry.target_recording(task).key)[1] if own is None else own.frames

    def _codes(self, entry: ManifestEntry, task: Task) -> Tensor:
        own = self._own_codes(entry, task)
        return self.codes[entry.target_recording(task).key] if own is None else own.load()


def codec_name(model: OmniLM) -> str | None:
    """Return the name (`--codec`) of a model's codec; None for a model that was not built from a recipe."""
    recipe = getattr(model, "recipe", "")
    return names_of(recipe).get("codec") if recipe else None


def _holds(store: ArrayStore | None, key: str) -> bool:
    return store is not None and key in store


class Samples(Dataset):
    """A data set of training samples that are built on access; None for one whose recording can then not be used.

    Only the origin of each sample is kept in memory, so that there can be many millions.

    Args:
        makers: builder of the samples of each source.
        sources: sources of the manifest entries.
        table: origin, length and labels of each sample.
    """

    def __init__(self, makers: list[SampleMaker], sources: list[Source], table: SampleTable):
        self.makers, self.sources, self.table = makers, sources, table

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
        source, entry = int(self.table.sources[index]), int(self.table.entries[index])
        task = TASKS[TASK_NAMES[self.table.tasks[index]]]
        try:
            return self.makers[source](self.sources[source].entries[entry], task)
        except UnusableRecording as error:
            logger.warning("%s", error)
            return None

    def __getitems__(self, indices: list[int]) -> list[Item | None]:
        """Return the samples of a micro-batch as a `MicroBatch`, or those of any other list of indices as a list."""
        items = [self[index] for index in indices]
        return indices.with_samples(items) if isinstance(indices, MicroBatch) else items


def make_dataset(
    model: OmniLM, sources: list[Source], tasks: dict[str, float], longest: int | None = None
) -> Samples:
    """Return the data set of all samples of the tasks with a positive weight, ordered by source, task and entry.

    Args:
        tasks: weight of each task in the mix.
        longest: maximum number of steps; longer samples are skipped. None = no limit.

    Raises:
        ValueError: there is no sample.
    """
    model.llm.tokenizer.encode("")  # a tokenizer that cannot be loaded fails here, not as if it refused a text
    makers = [SampleMaker(model, source) for source in sources]
    rows = [np.zeros((0, 6), np.int32)]  # the columns of a `SampleTable`
    for number, (source, make) in enumerate(zip(sources, makers, strict=True)):
        wanted = [name for name in source.tasks if tasks.get(name, 0) > 0]
        for name, found in _measured(make, source, wanted).items():
            entries, *measured = np.frombuffer(found, dtype=np.int32).reshape(-1, 4).T
            task = np.full_like(entries, TASK_NAMES.index(name))
            rows.append(np.stack([np.full_like(entries, number), entries, task, *measured], axis=1))
    table = SampleTable(*np.concatenate(rows).T)
    kept = np.ones(len(table), bool) if longest is None else table.lengths <= longest
    if not kept.any():
        wanted = ", ".join(name for name, weight in tasks.items() if weight > 0)
        raise ValueError(f"no entry of the sources serves a task of {wanted}; {len(table)} samples are too long")
    if not kept.all():
        logger.warning("%d samples of more than %d steps skipped", len(kept) - kept.sum(), longest)
    return Samples(makers, sources, table.select(kept))


def _measured(make: SampleMaker, source: Source, tasks: list[str]) -> dict[str, array[int]]:
    """Return the lengths and labels of each training sample of a source, without building the samples.

    The source's entries are read once, and the texts of many of them are tokenized together. An entry with a text that
    the tokenizer refuses is skipped; one warning counts such entries.

    Returns:
        For each task a flat array with four numbers for each sample: index of the entry, number of steps, and number of
        labels in the text stream and in each audio stream.
    """
    found = {name: array("i") for name in tasks}
    refused: dict[int, str] = {}
    ordered = enumerate(source.entries if tasks else ())
    while some := list(islice(ordered, _TOGETHER)):
        usable = [(i, entry, name) for i, entry in some for name in tasks if make.usable(entry, TASKS[name])]
        texts = list({text: None for _, entry, name in usable for text in make.texts(entry, TASKS[name])})
        tokens = _counted(make.model.llm.tokenizer, texts)
        for i, entry, name in usable:
            problem = next(
                (tokens[t] for t in make.texts(entry, TASKS[name]) if isinstance(tokens[t], ValueError)), None
            )
            if problem is None:
                found[name].extend((i, *make.measure(entry, TASKS[name], tokens)))
            else:
                refused.setdefault(i, f"entry {entry.id}: {one_line(problem)}")
    if refused:
        first = next(iter(refused.values()))
        logger.warning("sources.%s: %d entries refused by the tokenizer (such as %s)", source.name, len(refused), first)
    return found


def _counted(tokenizer: Tokenizer, texts: list[str]) -> dict[str, int | ValueError]:
    """Return the number of tokens of each text, or the error with which the tokenizer refuses the text."""
    if not texts:
        return {}
    try:
        return dict(zip(texts, tokenizer.count(texts), strict=True))
    except ValueError as error:
        if len(texts) == 1:
            return {texts[0]: error}
    middle = len(texts) // 2
    return _counted(tokenizer, texts[:middle]) | _counted(tokenizer, texts[middle:])


def collate_items(model: OmniLM) -> Callable[[list[Item | None]], Batch]:
    """Return the collate function for items of a model's samples, see `omnikit.data.collate.collator`."""
    return collator(model.layout, model.encoder.dim)
