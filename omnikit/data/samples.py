"""From rows and stored arrays to training samples."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from omnikit.data.array_cache import ArrayStore
from omnikit.data.collate import Batch, collate
from omnikit.data.manifest_reader import Codes, Features, ManifestEntry
from omnikit.errors import one_line
from omnikit.hparams.recipe import names_of
from omnikit.interfaces import AudioEncoder, Tokenizer
from omnikit.model import OmniLM
from omnikit.tasks import TASKS, Task, make_sample, sample_length

logger = logging.getLogger(__name__)
NAMES = list(TASKS)
Item = dict[str, Any]
"""`id` of the row; `sample`, a `Sample`; `features` [T, D] of the encoder, or `wav` [N], a recording of which they are
still to be made; None in place of what it has not."""
_TOGETHER = 2048  # rows


class UnusableRecording(ValueError):
    """A recording of which the training step was to make features cannot be used."""


@dataclass(frozen=True)
class SpeechInputs:
    """Encoder features of rows: their own where they are of the system's encoder, else those made of the recordings;
    with `live` in their place the recordings, of which the training step makes features."""

    encoder: str | None = None
    """Fingerprint of the system's; None where no row has features."""
    made: ArrayStore | None = None
    live: AudioEncoder | None = None
    """The system's; None where features were made before."""

    def own(self, row: ManifestEntry) -> Features | None:
        """The row's own features, of this encoder."""
        return row.features if row.features is not None and row.features.encoder == self.encoder else None

    def __contains__(self, row: ManifestEntry) -> bool:
        if self.own(row) is not None:
            return True
        if self.live is not None:
            return row.a1 is not None and isinstance(self.expected(row), int)
        return row.a1 is not None and _holds(self.made, row.a1.key)

    def __getitem__(self, row: ManifestEntry) -> Tensor:
        """[T, D], float16"""
        own = self.own(row)
        return self.made[row.a1.key] if own is None else own.load()

    def frames(self, row: ManifestEntry) -> int:
        """T, without reading them; of a recording about so many, by its length in seconds."""
        own = self.own(row)
        if own is not None:
            return own.frames
        return self.made.shape(row.a1.key)[0] if self.live is None else self.expected(row)

    def wav(self, row: ManifestEntry) -> Tensor | None:
        """The recording [N] of which the training step makes features; None where the row has features.

        Raises:
            UnusableRecording: it cannot be read, or the encoder takes no recording of that length.
        """
        if self.live is None or self.own(row) is not None:
            return None
        try:
            wav = row.a1.load(self.live.sample_rate)
            self.live.num_frames(len(wav))
        except ValueError as error:
            raise UnusableRecording(f"row {row.id} is left out of its batch: {one_line(error)}") from None
        return wav

    def expected(self, row: ManifestEntry) -> int | str:
        """About how many frames T the encoder makes of a row's recording, by its length in seconds; in their place the
        reason (of `skipped.REASONS`) for which it cannot be used."""
        seconds = row.duration
        if not seconds:
            found = row.a1.check()
            if found.problem:
                return found.problem
            seconds = found.seconds
        try:
            return self.live.num_frames(round(seconds * self.live.sample_rate))
        except ValueError:
            return "refused"


@dataclass(frozen=True)
class Source:
    """The rows of one corpus, the tasks that they serve, and what was made of their recordings."""

    rows: Sequence[ManifestEntry]
    tasks: tuple[str, ...]
    heard: SpeechInputs = field(default_factory=SpeechInputs)
    codes: ArrayStore | None = None
    name: str = ""
    """Its key in the recipe's `sources`, for messages."""


class SampleMaker:
    """Makes the sample of a source's row for a task.

    What is said comes from the row's own codes if they are of the model's codec, else from those made of its recording.

    Args:
        model: gives layout, pattern, tokenizer and the adapter's stride.
        source: gives the stored arrays by clip.
    """

    def __init__(self, model: OmniLM, source: Source):
        self.model, self.heard, self.codes = model, source.heard, source.codes
        self.codec = codec_name(model)

    def usable(self, row: ManifestEntry, task: Task) -> bool:
        """Whether the row serves the task and its recordings could be read."""
        if not row.serves(task):
            return False
        spoken = row.spoken(task)
        return (task.given != "speech" or row in self.heard) and (
            not task.speaks
            or self._own_codes(row, task) is not None
            or (spoken is not None and _holds(self.codes, spoken.key))
        )

    def texts(self, row: ManifestEntry, task: Task) -> list[str]:
        """What is read and written in the sample."""
        return [row.written(task), *([row.t1] if task.given == "text" else [])]

    def length(self, row: ManifestEntry, task: Task, tokens: dict[str, int]) -> int:
        """Steps of the sample, without making it; `tokens`: how many each of its texts has."""
        given = self.model.frames_heard(self.heard.frames(row)) if task.given == "speech" else tokens[row.t1]
        frames = self._frames(row, task) if task.speaks else 0
        return sample_length(task, self.model.pattern, given=given, text=tokens[row.written(task)], frames=frames)

    def __call__(self, row: ManifestEntry, task: Task) -> Item:
        """Row and task -> the sample and what it hears.

        Raises:
            UnusableRecording: see `SpeechInputs.wav`.
        """
        encode = self.model.llm.tokenizer.encode
        features = wav = frames = None
        if task.given == "speech":
            wav = self.heard.wav(row)
            features = self.heard[row] if wav is None else None
            frames = len(features) if wav is None else self.heard.live.num_frames(len(wav))
        sample = make_sample(
            task,
            self.model.layout,
            self.model.pattern,
            question=encode(row.t1) if task.given == "text" else None,
            audio_frames=None if frames is None else self.model.frames_heard(frames),
            answer=encode(row.written(task)),
            codes=self._codes(row, task) if task.speaks else None,
        )
        return {"id": row.id, "sample": sample, "features": features, "wav": wav}

    def _own_codes(self, row: ManifestEntry, task: Task) -> Codes | None:
        codes = row.spoken_codes(task)
        return codes if codes is not None and codes.codec == self.codec else None

    def _frames(self, row: ManifestEntry, task: Task) -> int:
        own = self._own_codes(row, task)
        return self.codes.shape(row.spoken(task).key)[1] if own is None else own.frames

    def _codes(self, row: ManifestEntry, task: Task) -> Tensor:
        """[K, T]"""
        own = self._own_codes(row, task)
        return (self.codes[row.spoken(task).key] if own is None else own.load()).long()


def codec_name(model: OmniLM) -> str | None:
    """What the model's codec is called (`--codec`); None for a model that was not built from hparams."""
    recipe = getattr(model, "recipe", "")
    return names_of(recipe).get("codec") if recipe else None


def _holds(store: ArrayStore | None, key: str) -> bool:
    return store is not None and key in store


class Samples(Dataset):
    """Samples, each made when it is asked for; None for one whose recording cannot be read then.

    Nothing is kept of a sample but where it comes from, so that there can be many millions.

    Args:
        makers: of each source.
        sources: where rows are; of a large corpus they stay in its table.
        places: source, row of it, and task (its place in `TASKS`) of each sample [samples, 3].
    """

    def __init__(self, makers: list[SampleMaker], sources: list[Source], places: np.ndarray):
        self.makers, self.sources, self.places = makers, sources, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Item | None:
        source, place, task = self.places[index].tolist()
        try:
            return self.makers[source](self.sources[source].rows[place], TASKS[NAMES[task]])
        except UnusableRecording as error:
            logger.warning("%s", error)
            return None


def make_dataset(
    model: OmniLM, sources: list[Source], tasks: dict[str, float], longest: int | None = None
) -> tuple[Samples, np.ndarray, np.ndarray]:
    """All samples of the wanted tasks: source after source, in it task after task, in it row after row.

    Args:
        longest: samples of more steps are left out.

    Returns:
        The samples, the task of each, and the steps of each.

    Raises:
        ValueError: there is no sample.
    """
    model.llm.tokenizer.encode("")  # one that cannot be loaded says so here, before texts are blamed
    makers, places, lengths = [SampleMaker(model, source) for source in sources], [], []
    for number, (source, make) in enumerate(zip(sources, makers, strict=True)):
        wanted = [name for name in source.tasks if tasks.get(name, 0) > 0]
        for name, found in _measured(make, source, wanted).items():
            rows, steps = np.frombuffer(found, dtype=np.int32).reshape(-1, 2).T
            lengths.append(steps)
            places.append(np.stack([np.full_like(rows, number), rows, np.full_like(rows, NAMES.index(name))], axis=1))
    steps = np.concatenate([*lengths, np.zeros(0, np.int32)])
    kept = np.ones(len(steps), bool) if longest is None else steps <= longest
    if not kept.any():
        wanted = ", ".join(name for name, weight in tasks.items() if weight > 0)
        raise ValueError(f"no row of the sources serves a task of {wanted}; {len(steps)} samples are too long")
    if not kept.all():
        logger.warning("%d samples of more than %d steps left out", len(kept) - kept.sum(), longest)
    chosen = np.concatenate(places)[kept]
    return Samples(makers, sources, chosen), np.array(NAMES)[chosen[:, 2]], steps[kept]


def _measured(make: SampleMaker, source: Source, tasks: list[str]) -> dict[str, array[int]]:
    """Measure the samples of a source: by task, the row and the steps of every sample, one after the other.

    Rows are gone through once, and the texts of some thousand are counted together. A row with a text that the
    tokenizer refuses makes no sample; one warning counts such rows.
    """
    found = {name: array("i") for name in tasks}
    refused: dict[int, str] = {}
    ordered = enumerate(source.rows if tasks else ())
    while some := list(islice(ordered, _TOGETHER)):
        usable = [(i, row, name) for i, row in some for name in tasks if make.usable(row, TASKS[name])]
        texts = list({text: None for _, row, name in usable for text in make.texts(row, TASKS[name])})
        tokens = _counted(make.model.llm.tokenizer, texts)
        for i, row, name in usable:
            problem = next((tokens[t] for t in make.texts(row, TASKS[name]) if isinstance(tokens[t], ValueError)), None)
            if problem is None:
                found[name].extend((i, make.length(row, TASKS[name], tokens)))
            else:
                refused.setdefault(i, f"row {row.id}: {one_line(problem)}")
    if refused:
        first = next(iter(refused.values()))
        logger.warning("sources.%s: %d rows refused by the tokenizer (such as %s)", source.name, len(refused), first)
    return found


def _counted(tokenizer: Tokenizer, texts: list[str]) -> dict[str, int | ValueError]:
    """Text -> how many tokens it has, or the error with which the tokenizer refuses it."""
    if not texts:
        return {}
    try:
        return dict(zip(texts, tokenizer.count(texts), strict=True))
    except ValueError as error:
        if len(texts) == 1:
            return {texts[0]: error}
    middle = len(texts) // 2
    return _counted(tokenizer, texts[:middle]) | _counted(tokenizer, texts[middle:])


def collate_items(model: OmniLM):
    """A collate function for that dataset's items.

    Raises:
        ValueError: of a batch without any.
    """

    def join(items: list[Item | None]) -> Batch:
        items = [item for item in items if item is not None]
        if not items:
            raise ValueError("none of the recordings of a batch can be read (see the log); make the manifest anew")
        names = ("sample", "features", "wav", "id")
        samples, features, wavs, ids = ([item[name] for item in items] for name in names)
        return collate(samples, features, model.layout, model.encoder.dim, wavs, ids)

    return join
