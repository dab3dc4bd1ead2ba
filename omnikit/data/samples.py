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

    def own(self, entry: ManifestEntry) -> Features | None:
        """The row's own features, of this encoder."""
        return entry.features if entry.features is not None and entry.features.encoder == self.encoder else None

    def __contains__(self, entry: ManifestEntry) -> bool:
        if self.own(entry) is not None:
            return True
        if self.live is not None:
            return entry.a1 is not None and isinstance(self.expected(entry), int)
        return entry.a1 is not None and _holds(self.made, entry.a1.key)

    def __getitem__(self, entry: ManifestEntry) -> Tensor:
        """[T, D], float16"""
        own = self.own(entry)
        return self.made[entry.a1.key] if own is None else own.load()

    def frames(self, entry: ManifestEntry) -> int:
        """T, without reading them; of a recording about so many, by its length in seconds."""
        own = self.own(entry)
        if own is not None:
            return own.frames
        return self.made.shape(entry.a1.key)[0] if self.live is None else self.expected(entry)

    def wav(self, entry: ManifestEntry) -> Tensor | None:
        """The recording [N] of which the training step makes features; None where the row has features.

        Raises:
            UnusableRecording: it cannot be read, or the encoder takes no recording of that length.
        """
        if self.live is None or self.own(entry) is not None:
            return None
        try:
            wav = entry.a1.load(self.live.sample_rate)
            self.live.num_frames(len(wav))
        except ValueError as error:
            raise UnusableRecording(f"entry {entry.id} is left out of its batch: {one_line(error)}") from None
        return wav

    def expected(self, entry: ManifestEntry) -> int | str:
        """About how many frames T the encoder makes of a row's recording, by its length in seconds; in their place the
        reason (of `skipped.REASONS`) for which it cannot be used."""
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
    """The rows of one corpus, the tasks that they serve, and what was made of their recordings."""

    entries: Sequence[ManifestEntry]
    tasks: tuple[str, ...]
    speech_inputs: SpeechInputs = field(default_factory=SpeechInputs)
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
        self.model, self.speech_inputs, self.codes = model, source.speech_inputs, source.codes
        self.codec = codec_name(model)

    def usable(self, entry: ManifestEntry, task: Task) -> bool:
        """Whether the row serves the task and its recordings could be read."""
        if not entry.serves(task):
            return False
        spoken = entry.target_recording(task)
        return (task.given != "speech" or entry in self.speech_inputs) and (
            not task.speaks
            or self._own_codes(entry, task) is not None
            or (spoken is not None and _holds(self.codes, spoken.key))
        )

    def texts(self, entry: ManifestEntry, task: Task) -> list[str]:
        """What is read and written in the sample."""
        return [entry.target_text(task), *([entry.t1] if task.given == "text" else [])]

    def length(self, entry: ManifestEntry, task: Task, tokens: dict[str, int]) -> int:
        """Steps of the sample, without making it; `tokens`: how many each of its texts has."""
        given = (
            self.model.num_speech_positions(self.speech_inputs.frames(entry))
            if task.given == "speech"
            else tokens[entry.t1]
        )
        frames = self._frames(entry, task) if task.speaks else 0
        return sample_length(task, self.model.pattern, given=given, text=tokens[entry.target_text(task)], frames=frames)

    def __call__(self, entry: ManifestEntry, task: Task) -> Item:
        """Row and task -> the sample and what it hears.

        Raises:
            UnusableRecording: see `SpeechInputs.wav`.
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
        """[K, T]"""
        own = self._own_codes(entry, task)
        return (self.codes[entry.target_recording(task).key] if own is None else own.load()).long()


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
            return self.makers[source](self.sources[source].entries[place], TASKS[NAMES[task]])
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
            entries, steps = np.frombuffer(found, dtype=np.int32).reshape(-1, 2).T
            lengths.append(steps)
            places.append(
                np.stack([np.full_like(entries, number), entries, np.full_like(entries, NAMES.index(name))], axis=1)
            )
    steps = np.concatenate([*lengths, np.zeros(0, np.int32)])
    kept = np.ones(len(steps), bool) if longest is None else steps <= longest
    if not kept.any():
        wanted = ", ".join(name for name, weight in tasks.items() if weight > 0)
        raise ValueError(f"no entry of the sources serves a task of {wanted}; {len(steps)} samples are too long")
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
                found[name].extend((i, make.length(entry, TASKS[name], tokens)))
            else:
                refused.setdefault(i, f"entry {entry.id}: {one_line(problem)}")
    if refused:
        first = next(iter(refused.values()))
        logger.warning("sources.%s: %d entries refused by the tokenizer (such as %s)", source.name, len(refused), first)
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
