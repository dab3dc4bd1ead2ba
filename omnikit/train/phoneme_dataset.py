"""Dataset of recordings with the phoneme ids of their transcripts, as targets of CTC."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from torch import Tensor

from omnikit.data.augment import Augment
from omnikit.data.manifest_reader import ManifestEntry, Recording
from omnikit.prepare.espeak import phonemes

BLANK = 0
SAMPLE_RATE = 16000


class Phones:
    """Mapping from phoneme symbols to CTC ids 1, 2 ..; id 0 is the blank."""

    def __init__(self, symbols: list[str]):
        self.symbols = symbols
        self.ids = {symbol: i + 1 for i, symbol in enumerate(symbols)}

    @classmethod
    def of_texts(cls, texts: list[str]) -> Phones:
        return cls(sorted({sound for text in texts for sound in phonemes(text)}))

    def __len__(self) -> int:
        return len(self.symbols) + 1

    def encode(self, text: str) -> list[int]:
        return [self.ids[sound] for sound in phonemes(text)]


def entries_with_phonemes(entries: Iterable[ManifestEntry], group: str) -> dict[str, dict[str, Any]]:
    """Return manifest entries as `{"<group>/<id>": {clip, text, duration, group}}`, with durations in seconds.

    Entries without a duration whose recording cannot be read are skipped.
    """
    found = {}
    for entry in entries:
        seconds = entry.duration or entry.a1.check().seconds
        if seconds:
            found[f"{group}/{entry.id}"] = {"clip": entry.a1, "text": entry.t1, "duration": seconds, "group": group}
    return found


def make_dataset(
    entries: dict[str, dict[str, Any]], phones: Phones, augment: Augment | None = None, seed: int = 0
) -> DynamicItemDataset:
    """Return a dataset over `entries_with_phonemes` with `id`, `group`, `wav` [N] at 16 kHz and `phones` [L].

    Args:
        augment: effects that change each recording anew whenever it is read; None = recordings as they are.
        seed: seed of their random generator.
    """
    rng = np.random.default_rng(seed)
    targets = {text: phones.encode(text) for text in {entry["text"] for entry in entries.values()}}

    def wav(recording: Recording) -> Tensor:
        sound = recording.load(SAMPLE_RATE)
        return torch.from_numpy(augment(sound.numpy(), SAMPLE_RATE, rng)) if augment else sound

    def ids(text: str) -> Tensor:
        return torch.tensor(targets[text])

    dataset = DynamicItemDataset(entries)
    dataset.add_dynamic_item(wav, takes="clip", provides="wav")
    dataset.add_dynamic_item(ids, takes="text", provides="phones")
    dataset.set_output_keys(["id", "group", "wav", "phones"])
    return dataset
