"""From rows and stored arrays to training samples, as SpeechBrain's DynamicItemDataset."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from omnikit.data.rows import Codes, Features, Row
from omnikit.data.store import ArrayStore
from omnikit.hparams.recipe import names_of
from omnikit.model import OmniLM
from omnikit.tasks import TASKS, Sample, Task, make_sample

logger = logging.getLogger(__name__)


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

    def length(self, row: Row, task: Task) -> int:
        """Steps of the sample, without making it."""
        count = len(self.model.llm.tokenizer.encode(row.written(task)))
        if task.speaks:
            frames = self._frames(row, task)
            count = max(count, max(self.model.pattern.end(s, frames) for s in range(len(self.model.pattern.carries))))
        if task.given == "speech":
            given = self.model.frames_heard(self.heard.frames(row))
        else:
            given = len(self.model.llm.tokenizer.encode(row.t1))
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


def make_dataset(model: OmniLM, sources: list[Source], tasks: dict[str, float], longest: int | None = None):
    """All samples of the wanted tasks as a DynamicItemDataset that provides `sample` and `features`.

    Rows stay where they are (of a large corpus, in its table) until a sample is asked for.

    Args:
        longest: samples of more steps are left out.

    Returns:
        The dataset, the task of each sample, and its steps (in the dataset's order).

    Raises:
        ValueError: two rows of a source share an id, or there is no sample.
    """
    from speechbrain.dataio.dataset import DynamicItemDataset

    makers = [SampleMaker(model, source) for source in sources]
    data, too_long = {}, 0
    for number, (source, make) in enumerate(zip(sources, makers, strict=True)):
        for name in source.tasks:
            if tasks.get(name, 0) <= 0:
                continue
            for index, row in enumerate(source.rows):
                key = f"{number} {row.id} {name}"
                if key in data:
                    raise ValueError(f"manifest: two rows of a source have the id {row.id!r}")
                if make.usable(row, TASKS[name]):
                    length = make.length(row, TASKS[name])
                    if longest is not None and length > longest:
                        too_long += 1
                        continue
                    data[key] = {"source": number, "index": index, "task": name, "length": length}
    if too_long:
        logger.warning("%d samples of more than %d steps left out", too_long, longest)
    if not data:
        wanted = ", ".join(name for name, weight in tasks.items() if weight > 0)
        raise ValueError(f"sources: no row serves one of the tasks {wanted}; {too_long} samples are too long")
    dataset = DynamicItemDataset(data)

    def provide(source: int, index: int, task: str):
        sample, features = makers[source](sources[source].rows[index], TASKS[task])
        yield sample
        yield features

    dataset.add_dynamic_item(provide, takes=["source", "index", "task"], provides=["sample", "features"])
    dataset.set_output_keys(["sample", "features"])
    order = [data[i] for i in dataset.data_ids]
    return dataset, [d["task"] for d in order], [d["length"] for d in order]


def collate_items(model: OmniLM):
    """A collate function for that dataset's items."""
    from omnikit.data.collate import collate

    def join(items: list[dict]):
        features = [None if i["features"] is None else torch.as_tensor(i["features"]) for i in items]
        return collate([i["sample"] for i in items], features, model.layout, model.encoder.dim)

    return join
