"""Baseline of benchmarks/index.py: how samples were measured before their texts were stored as token ids.

This is a frozen, minimal copy of the code of that time, which ran at every start, in one process: it creates all
manifest entries, tokenizes their texts and computes the length and the labels of each sample by itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import islice

from omnikit.data.manifest_reader import ManifestEntry
from omnikit.model import OmniLM
from omnikit.tasks import TASKS, Task, label_counts, sample_length

TOGETHER = 512
"""Number of entries whose texts are tokenized together."""


def earlier_measures(
    model: OmniLM, entries: Sequence[ManifestEntry], tasks: Sequence[str], codec: str, encoder: str
) -> dict[str, array[int]]:
    """Return the entry, length and labels in text and audio streams of each sample, four numbers each, by task.

    Args:
        codec: name of the system's codec.
        encoder: fingerprint of the system's encoder.
    """
    found = {name: array("i") for name in tasks}
    ordered = enumerate(entries)
    while some := list(islice(ordered, TOGETHER)):
        usable = [(i, each, name) for i, each in some for name in tasks if _usable(each, TASKS[name], codec, encoder)]
        texts = list({text: None for _, each, name in usable for text in _texts(each, TASKS[name])})
        tokens = dict(zip(texts, map(len, model.llm.tokenizer.encode_many(texts)), strict=True))
        for i, entry, name in usable:
            found[name].extend((i, *_measure(model, entry, TASKS[name], tokens)))
    return found


def _usable(entry: ManifestEntry, task: Task, codec: str, encoder: str) -> bool:
    if not entry.serves(task):
        return False
    codes = entry.target_codes(task)
    heard = task.given != "speech" or (entry.features is not None and entry.features.encoder == encoder)
    return heard and (not task.speaks or (codes is not None and codes.codec == codec))


def _texts(entry: ManifestEntry, task: Task) -> list[str]:
    return [entry.target_text(task), *([entry.t1] if task.given == "text" else [])]


def _measure(model: OmniLM, entry: ManifestEntry, task: Task, tokens: dict[str, int]) -> tuple[int, int, int]:
    speech = task.given == "speech"
    given = model.num_speech_positions(entry.features.frames) if speech else tokens[entry.t1]
    frames = entry.target_codes(task).frames if task.speaks else 0
    answer = {"text": tokens[entry.target_text(task)], "frames": frames}
    length = sample_length(task, model.pattern, given=given, **answer)
    return length, *label_counts(task, model.pattern, **answer)
