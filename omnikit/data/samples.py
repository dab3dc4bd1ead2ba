"""From rows and stored arrays to training samples."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from omnikit.data.rows import Codes, Features, Row
from omnikit.data.store import ArrayStore
from omnikit.hparams.recipe import names_of
from omnikit.model import OmniLM
from omnikit.tasks import TASKS, Sample, Task, make_sample

logger = logging.getLogger(__name__)
NAMES = list(TASKS)
_TOGETHER = 2048  # rows


@dataclass(frozen=True)
class Heard:
    """Encoder features of rows: their own where they are of the system's encoder, else those made of the recordings."""

    encoder: str | None = None
    """Fingerprint of the system's; None where no row has features."""
    made: ArrayStore | None = None

    def own(self, row: Row) -> Features | None:
        """The row's own features, of this encoder."""
        return row.features if row.features is not None and row.features.encoder == self.encoder else None

    def __contains__(self, row: Row) -> bool:
        return self.own(row) is not None or (row.a1 is not None and _holds(self.made, row.a1.key))

    def __getitem__(self, row: Row) -> Tensor:
        """[T, D], float16"""
        own = self.own(row)
        return self.made[row.a1.key] if own is None else own.load()

    def frames(self, row: Row) -> int:
        """T, without reading them."""
        own = self.own(row)
        return self.made.shape(row.a1.key)[0] if own is None else own.frames


@dataclass(frozen=True)
class Source:
    """The rows of one corpus, the tasks that they serve, and what was made of their recordings."""

    rows: Sequence[Row]
    tasks: tuple[str, ...]
    heard: Heard = field(default_factory=Heard)
    codes: ArrayStore | None = None


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

    def usable(self, row: Row, task: Task) -> bool:
        """Whether the row serves the task and its recordings could be read."""
        if not row.serves(task):
            return False
        spoken = row.spoken(task)
        return (task.given != "speech" or row in self.heard) and (
            not task.speaks
            or self._own_codes(row, task) is not None
            or (spoken is not None and _holds(self.codes, spoken.key))
        )

    def texts(self, row: Row, task: Task) -> list[str]:
        """What is read and written in the sample."""
        return [row.written(task), *([row.t1] if task.given == "text" else [])]

    def length(self, row: Row, task: Task, tokens: dict[str, int]) -> int:
        """Steps of the sample, without making it; `tokens`: how many each of its texts has."""
        count = tokens[row.written(task)]
        if task.speaks:
            frames = self._frames(row, task)
            count = max(count, max(self.model.pattern.end(s, frames) for s in range(len(self.model.pattern.carries))))
        given = self.model.frames_heard(self.heard.frames(row)) if task.given == "speech" else tokens[row.t1]
        return given + 3 + count

    def __call__(self, row: Row, task: Task) -> tuple[Sample, Tensor | None]:
        """Row and task -> the sample, and the encoder features [T, D] that it hears."""
        encode = self.model.llm.tokenizer.encode
        features = self.heard[row] if task.given == "speech" else None
        sample = make_sample(
            task,
            self.model.layout,
            self.model.pattern,
            question=encode(row.t1) if task.given == "text" else None,
            audio_frames=None if features is None else self.model.frames_heard(features.shape[0]),
            answer=encode(row.written(task)),
            codes=self._codes(row, task) if task.speaks else None,
        )
        return sample, features

    def _own_codes(self, row: Row, task: Task) -> Codes | None:
        codes = row.spoken_codes(task)
        return codes if codes is not None and codes.codec == self.codec else None

    def _frames(self, row: Row, task: Task) -> int:
        own = self._own_codes(row, task)
        return self.codes.shape(row.spoken(task).key)[1] if own is None else own.frames

    def _codes(self, row: Row, task: Task) -> Tensor:
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
    """Samples, each made when it is asked for: `{"sample": Sample, "features": [T, D] or None}`.

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

    def __getitem__(self, index: int) -> dict:
        source, row, task = self.places[index].tolist()
        sample, features = self.makers[source](self.sources[source].rows[row], TASKS[NAMES[task]])
        return {"sample": sample, "features": features}


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
    makers, places, lengths = [SampleMaker(model, source) for source in sources], [], []
    for number, (source, make) in enumerate(zip(sources, makers, strict=True)):
        wanted = [name for name in source.tasks if tasks.get(name, 0) > 0]
        for name, found in _measured(make, source.rows, wanted).items():
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


def _measured(make: SampleMaker, rows: Sequence[Row], tasks: list[str]) -> dict[str, array[int]]:
    """Of each task, row and steps of every sample, one after the other.

    Rows are gone through once, and the texts of some thousand are counted together.
    """
    found = {name: array("i") for name in tasks}
    ordered = enumerate(rows if tasks else ())
    while some := list(islice(ordered, _TOGETHER)):
        usable = [(i, row, name) for i, row in some for name in tasks if make.usable(row, TASKS[name])]
        texts = list({text: None for _, row, name in usable for text in make.texts(row, TASKS[name])})
        tokens = dict(zip(texts, make.model.llm.tokenizer.count(texts), strict=True)) if texts else {}
        for i, row, name in usable:
            found[name].extend((i, make.length(row, TASKS[name], tokens)))
    return found


def collate_items(model: OmniLM):
    """A collate function for that dataset's items."""
    from omnikit.data.collate import collate

    def join(items: list[dict]):
        features = [None if i["features"] is None else torch.as_tensor(i["features"]) for i in items]
        return collate([i["sample"] for i in items], features, model.layout, model.encoder.dim)

    return join
