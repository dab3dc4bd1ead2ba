"""From rows and stored arrays to training samples, as SpeechBrain's DynamicItemDataset."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omnikit.data.rows import Row
from omnikit.data.store import ArrayStore
from omnikit.model import OmniLM
from omnikit.tasks import TASKS, Sample, Task, make_sample


@dataclass(frozen=True)
class Source:
    """The rows of one corpus, the tasks that they serve, and what was made of their recordings."""

    rows: list[Row]
    tasks: tuple[str, ...]
    features: ArrayStore | None = None
    codes: ArrayStore | None = None


class SampleMaker:
    """Makes the sample of a row for a task.

    Args:
        model: gives layout, pattern, tokenizer and the adapter's stride.
        features, codes: stored arrays by clip.
    """

    def __init__(self, model: OmniLM, features: list[ArrayStore], codes: list[ArrayStore]):
        self.model, self.features, self.codes = model, features, codes

    def usable(self, row: Row, task: Task) -> bool:
        """Whether the row serves the task and its recordings could be read."""
        if not row.serves(task):
            return False
        heard, spoken = row.heard(task), row.spoken(task)
        return (heard is None or _find(self.features, heard.key) is not None) and (
            spoken is None or _find(self.codes, spoken.key) is not None
        )

    def length(self, row: Row, task: Task) -> int:
        """Steps of the sample, without making it."""
        count = len(self.model.llm.tokenizer.encode(row.written(task)))
        if task.speaks:
            frames = _find(self.codes, row.spoken(task).key).shape(row.spoken(task).key)[1]
            count = max(count, max(self.model.pattern.end(s, frames) for s in range(len(self.model.pattern.carries))))
        if task.given == "speech":
            given = self.model.frames_heard(_find(self.features, row.heard(task).key).shape(row.heard(task).key)[0])
        else:
            given = len(self.model.llm.tokenizer.encode(row.t1))
        return given + 3 + count

    def __call__(self, row: Row, task: Task) -> tuple[Sample, Tensor | None]:
        """Row and task -> the sample, and the encoder features [T, D] that it hears."""
        encode = self.model.llm.tokenizer.encode
        features = codes = None
        if task.given == "speech":
            key = row.heard(task).key
            features = _find(self.features, key)[key]
        if task.speaks:
            key = row.spoken(task).key
            codes = _find(self.codes, key)[key].long()
        sample = make_sample(
            task,
            self.model.layout,
            self.model.pattern,
            question=encode(row.t1) if task.given == "text" else None,
            audio_frames=None if features is None else self.model.frames_heard(features.shape[0]),
            answer=encode(row.written(task)),
            codes=codes,
        )
        return sample, features


def _find(stores: list[ArrayStore], key: str) -> ArrayStore | None:
    return next((store for store in stores if key in store), None)


def make_dataset(model: OmniLM, sources: list[Source], tasks: dict[str, float]):
    """All samples of the wanted tasks as a DynamicItemDataset that provides `sample` and `features`.

    Returns:
        The dataset, the task of each sample, and its steps (in the dataset's order).
    """
    from speechbrain.dataio.dataset import DynamicItemDataset

    make = SampleMaker(
        model,
        [s.features for s in sources if s.features is not None],
        [s.codes for s in sources if s.codes is not None],
    )
    data = {}
    for source in sources:
        for name in source.tasks:
            if tasks.get(name, 0) <= 0:
                continue
            for row in source.rows:
                if make.usable(row, TASKS[name]):
                    length = make.length(row, TASKS[name])
                    data[f"{row.id} {name}"] = {"row": row, "task": name, "length": length}
    dataset = DynamicItemDataset(data)

    def provide(row: Row, task: str):
        sample, features = make(row, TASKS[task])
        yield sample
        yield features

    dataset.add_dynamic_item(provide, takes=["row", "task"], provides=["sample", "features"])
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
