"""Groups the entries of a source to dialogs, and measures the samples that the dialogs give for a task.

A dialog gives one sample of each task that answers questions: its turns in a row. Nothing is drawn at random: which
questions are typed and which answer is interrupted are functions of the run's seed and the name of the dialog.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from omnikit.counter_rng import GOLDEN, hash32
from omnikit.data.first_turns import usual_first
from omnikit.data.interruptions import TurnAnswers, chosen_cut
from omnikit.data.manifest_reader import ManifestEntry, answer_field
from omnikit.data.sample_table import SampleTable, for_each
from omnikit.data.skipped import Skipped
from omnikit.data.source_index import TURN, UNNUMBERED, SourceIndex
from omnikit.tasks import TASK_NAMES, Task, answer_ends, label_counts, label_counts_before_ends, prompt_length
from omnikit.turns import heard_tokens

if TYPE_CHECKING:
    from omnikit.data.samples import Source
    from omnikit.model import OmniLM

REASONS = {
    "turn without a number": "the entry has `dialog` but no `turn`; it is skipped",
    "double turn": "an earlier entry is the same turn of the dialog; the later one is skipped",
    "no first turn": "the dialog begins with a higher number than is usual in the source; it is skipped",
    "missing turn": "a number is missing; the dialog ends before it",
    "unusable turn": "a turn has no text, codes or features that the task needs; the dialog ends before it",
    "cut to max_sample_length": "the dialog is longer; the turns that do not fit are left out",
    "longer than max_sample_length": "the first turn alone is longer; the dialog is skipped",
}
"""Mapping from each reason for which turns of dialogs are not trained on to its explanation for users."""
WHOLE = -1
"""Number of frames heard of an answer that is not cut."""
_MIXED, _CUT, _WHICH, _WHERE = range(4)  # marks of the hashes of turns and dialogs


@dataclass(frozen=True)
class Turns:
    """The turns of samples, one after another; sample i has those from `begins[i]` to `begins[i + 1]`, maybe none."""

    begins: np.ndarray  # [samples + 1]
    entries: np.ndarray
    """Index of the manifest entry of each turn in its source."""
    spoken: np.ndarray
    """Whether the question of each turn is given as speech."""
    heard: np.ndarray
    """Number of frames that are heard of the answer of each turn, or of text ids that are kept of a written one;
    `WHOLE` if neither it nor one it repeats is cut."""

    @classmethod
    def none(cls, samples: int) -> Turns:
        """Return the turns of samples that are single entries."""
        return cls(np.zeros(samples + 1, np.int64), *(np.zeros(0, kind) for kind in (np.int32, bool, np.int32)))

    def of(self, sample: int) -> list[tuple[int, bool, int]]:
        """Return entry, `spoken` and `heard` of each turn of a sample; [] if it is a single entry."""
        own = slice(int(self.begins[sample]), int(self.begins[sample + 1]))
        return list(zip(*(each[own].tolist() for each in (self.entries, self.spoken, self.heard)), strict=True))


def joined(parts: Sequence[Turns]) -> Turns:
    """Return the turns of the samples of several tables, one after another."""
    ends = np.cumsum([0, *(len(part.entries) for part in parts)])
    begins = [part.begins[:-1] + end for part, end in zip(parts, ends, strict=False)]
    columns = ([getattr(part, name) for part in parts] for name in ("entries", "spoken", "heard"))
    return Turns(np.concatenate([*begins, ends[-1:]]), *map(np.concatenate, columns))


@dataclass(frozen=True)
class Dialogs:
    """The usable turns of the dialogs of a source, dialog by dialog in the order of their first entries."""

    entries: np.ndarray
    """Index of the manifest entry of each turn [turns]."""
    begins: np.ndarray
    """Index of the first turn of each dialog [dialogs]; there is at least one dialog, and a turn in each."""
    names: np.ndarray
    """Hash of the name of each dialog [dialogs], see `SourceIndex.dialogs`."""

    @cached_property
    def places(self) -> np.ndarray:
        """Index of each turn in its dialog [turns]."""
        return np.arange(len(self.entries)) - self.begins[self.owners]

    @cached_property
    def owners(self) -> np.ndarray:
        """Index of the dialog of each turn [turns]."""
        return np.repeat(np.arange(len(self.begins)), np.diff(self.begins, append=len(self.entries)))


def group(index: SourceIndex, entries: Sequence[ManifestEntry], skipped: Skipped) -> Dialogs | None:
    """Group the entries of a source to dialogs; None if there is no dialog.

    The numbers of a dialog's turns are consecutive; `usual_first` says with which they begin.

    Args:
        skipped: counts of turns and dialogs that are not used, with examples; they are added to it.
    """
    turns, names = index.column(TURN), index.dialogs()
    _count(skipped, "turn without a number", np.flatnonzero(turns == UNNUMBERED), entries)
    inside = np.flatnonzero(turns >= 0)
    if not len(inside):
        return None
    inside = inside[np.lexsort((turns[inside], names[inside]))]
    owner = np.cumsum(np.diff(names[inside], prepend=names[inside[0]]) != 0)
    same = np.flatnonzero((np.diff(owner) == 0) & (np.diff(turns[inside]) == 0)) + 1
    _count(skipped, "double turn", inside[same], entries)
    inside, owner = np.delete(inside, same), np.delete(owner, same)
    begins = np.flatnonzero(np.diff(owner, prepend=-1))
    firsts, counts = turns[inside[begins]], np.diff(begins, append=len(inside))
    places = np.arange(len(inside)) - np.repeat(begins - np.minimum(firsts, usual_first(firsts)), counts)
    used = turns[inside] == places  # the turns of a dialog before the first gap
    _count(skipped, "no first turn", inside[begins[~used[begins]]], entries)
    _count(skipped, "missing turn", inside[1:][used[:-1] & ~used[1:] & (np.diff(owner) == 0)], entries)
    return _in_order(inside[used].astype(np.int32), owner[used], names) if used.any() else None


def _in_order(entries: np.ndarray, owner: np.ndarray, names: np.ndarray) -> Dialogs:
    """Return dialogs in the order of their first entries.

    Args:
        entries: index of the entry of each turn [turns], dialog by dialog.
        owner: number of the dialog of each turn [turns].
        names: hash of the name of the dialog of each entry [entries].
    """
    begins = np.flatnonzero(np.diff(owner, prepend=-1))
    order, counts = np.argsort(np.minimum.reduceat(entries, begins)), np.diff(begins, append=len(entries))
    ends = np.cumsum(counts[order])
    entries = entries[np.arange(len(entries)) + np.repeat(begins[order] + counts[order] - ends, counts[order])]
    begins = ends - counts[order]
    return Dialogs(entries, begins, names[entries[begins]])


def _count(skipped: Skipped, reason: str, which: np.ndarray, entries: Sequence[ManifestEntry]) -> None:
    if len(which):
        first = entries[int(which[0])]
        skipped.add(reason, f"entry {first.id} of dialog {first.dialog}", len(which))


def measured(
    model: OmniLM, number: int, source: Source, task: Task, dialogs: Dialogs, skipped: Skipped, *,
    longest: int | None, seed: int,
) -> tuple[SampleTable, Turns]:  # fmt: skip
    """Return the table of the samples of a source's dialogs for one task, and their turns, without building them.

    Args:
        number: index of the source.
        task: task that answers questions.
        skipped: counts of dialogs that are cut or skipped; they are added to it.
        longest: maximum number of steps of a sample; None = no limit.
        seed: seed of the hashes that choose typed questions and interrupted answers.
    """
    measure = _Measure(model, source, task, dialogs, seed)
    fits = measure.usable.copy()
    if longest is not None:
        fits &= measure.ends(measure.steps) - 1 <= longest
    firsts = dialogs.begins
    lost = ~measure.usable & (dialogs.places > 0) & np.roll(measure.usable, 1)
    where, count = f" ({task.name})", partial(_count, skipped, entries=source.entries)
    count(f"unusable turn{where}", dialogs.entries[lost])
    count(f"longer than max_sample_length{where}", dialogs.entries[firsts[measure.usable[firsts] & ~fits[firsts]]])
    beyond = measure.usable & ~fits & (dialogs.places > 0) & np.roll(fits, 1)
    count(f"cut to max_sample_length{where}", dialogs.entries[beyond])
    return measure.table(number, fits)


class _Measure:
    """Lengths and labels of the turns of a source's dialogs for a task.

    The attributes are arrays [turns].
    """

    def __init__(self, model: OmniLM, source: Source, task: Task, dialogs: Dialogs, seed: int):
        self.pattern, self.task, self.dialogs, self.source, self.seed = model.pattern, task, dialogs, source, seed
        self.tokenizer, entries, index = model.llm.tokenizer, dialogs.entries, source.index
        features, written = source.feature_frames()[entries], index.counts("t1")[entries]
        self.text = index.counts(answer_field(task))[entries]
        self.frames = source.code_frames(task)[entries] if task.speaks else self.text  # a frame for each text id
        kinds = {"speech": features >= 0, "text": written > 0}
        own, other = kinds.pop(task.given), *kinds.values()
        self.own = own
        swapped = other & (~own | self._mixed())
        self.spoken = swapped != (task.given == "speech")
        self.usable = self._until((own | other) & (self.text >= 0) & (self.frames >= 0))
        given = np.where(self.spoken, model.num_speech_positions(features), written)
        self.heard = np.full_like(entries, WHOLE)
        self.prompts = prompt_length(given)
        self.audio = np.zeros_like(self.text)
        if task.speaks:
            self.audio = for_each(lambda n: label_counts(task, self.pattern, text=0, frames=max(n, 0))[1], self.frames)
        self.written = self.text + 1
        self.steps = self.prompts + np.maximum(self.text + 1, self.audio)

    def share(self, mark: int) -> np.ndarray:
        """Return a number in 0 .. 1, without 1, for each dialog [dialogs]."""
        return self.hashed(mark) / 2**32

    def hashed(self, mark: int) -> np.ndarray:
        """Return a hash (32 bits) of seed, mark and name for each dialog [dialogs], whatever else the source holds."""
        names = self.dialogs.names
        return _hashed(self.seed, mark, names >> 32, names & 0xFFFFFFFF)

    def _mixed(self) -> np.ndarray:
        """Return a mask [turns] of the turns whose question is given in the other kind, where there is one."""
        if not self.source.mixed:
            return np.zeros(len(self.dialogs.entries), bool)
        return _hashed(self.hashed(_MIXED)[self.dialogs.owners], self.dialogs.places) / 2**32 < self.source.mixed

    def ends(self, steps: np.ndarray) -> np.ndarray:
        """Return the sum of the steps of each turn and of those before it in its dialog [turns]."""
        total = np.cumsum(steps)
        before = total[self.dialogs.begins] - steps[self.dialogs.begins]
        return total - before[self.dialogs.owners]

    def _until(self, good: np.ndarray) -> np.ndarray:
        """Return a mask [turns] of the turns before the first of a dialog that is not good."""
        return self.ends((~good).astype(np.int64)) == 0

    def table(self, number: int, kept: np.ndarray) -> tuple[SampleTable, Turns]:
        """Return samples of the turns [turns] that are kept: the first ones of each dialog.

        A dialog of which no question is of the task's kind gives no sample.
        """
        counts = np.add.reduceat(kept.astype(np.int64), self.dialogs.begins)
        held = np.add.reduceat((kept & self.own).astype(np.int64), self.dialogs.begins) > 0
        self._interrupt(counts)
        kept = kept & held[self.dialogs.owners]
        columns = self.steps, self.written * self.task.writes, self.audio
        sums = [np.add.reduceat(np.where(kept, each, 0), self.dialogs.begins)[held] for each in columns]
        first = self.dialogs.entries[self.dialogs.begins[held]]
        origin = np.full_like(first, number), first, np.full_like(first, TASK_NAMES.index(self.task.name))
        table = SampleTable(*(each.astype(np.int32) for each in (*origin, sums[0] - 1, *sums[1:])))
        begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[held])])
        return table, Turns(begins, self.dialogs.entries[kept], self.spoken[kept], self.heard[kept])

    def _interrupt(self, counts: np.ndarray) -> None:
        """Cut one answer of a share of the dialogs, and its repetitions, given the number of turns of each [dialogs].

        See `omnikit.data.interruptions` for the choice.
        """
        ids, name = self.source.index.tokens, answer_field(self.task)
        answers = TurnAnswers(
            lambda turn: ids(name, int(self.dialogs.entries[turn])), self.text, self.frames, self.tokenizer
        )
        some = np.flatnonzero((self.share(_CUT) < self.source.interrupted) & (counts > 1))
        begins, hashes = self.dialogs.begins[some], (self.hashed(_WHICH)[some], self.hashed(_WHERE)[some])
        spans = zip(*(each.tolist() for each in (begins, begins + counts[some], *hashes)), strict=True)
        cuts = filter(None, (chosen_cut(answers, *span) for span in spans))
        columns = [(cut.turn + i, heard, i > 0) for cut in cuts for i, heard in enumerate(cut.frames)]
        self._cut(*np.array(columns, np.int64).reshape(-1, 3).T)

    def _cut(self, turns: np.ndarray, heard: np.ndarray, ended: np.ndarray) -> None:
        """Cut answers [n] to `heard` frames; where `ended`, their end marks keep their labels."""
        tokens = heard_tokens(self.text[turns], heard, self.frames[turns])
        last = for_each(lambda n: max(self._ends(n)), heard)
        before_ends = for_each(lambda n: label_counts_before_ends(self.task, self._ends(n))[1], heard)
        self.heard[turns], self.written[turns] = heard, tokens + ended
        self.audio[turns] = np.where(ended, last + 1, before_ends) * self.task.speaks
        self.steps[turns] = self.prompts[turns] + np.maximum(tokens, last) + 1

    def _ends(self, frames: int) -> list[int]:
        return answer_ends(self.task, self.pattern, text=0, frames=frames)


def _hashed(*keys: np.ndarray | int) -> np.ndarray:
    """Return a hash (32 bits) of integers, or of the values of arrays of the same size."""
    found = torch.tensor(0)
    for key in keys:
        found = hash32(found * GOLDEN + torch.as_tensor(key))
    return found.numpy()
