"""Decode steps by a model's own modules, for any backbone on any device.

Sequences are right-aligned in the backbone's own KV cache: the last of its C columns holds the last position of each,
and columns before the first position of a shorter one are masked. To the backbone a decode step is thus a left-padded
batch, and its cache grows by a column. If the cache does not give access to its keys and values, each sequence is
decoded by itself.

Letters: R slots, G heads of keys and values, C columns, E width of a head, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from omnikit.engines.continued import PrefillInParts, begin_in_parts, parts_of
from omnikit.interfaces import Engine, Hidden, Parked, Prefill, Slots
from omnikit.kv_cache import can_join, layers
from omnikit.model import Cache, OmniLM


class TorchEngine(Engine):
    """An engine that computes with the model's own modules.

    Args:
        model: model with any backbone; its weights are used in place.
    """

    name, parks = "torch", True

    def __init__(self, model: OmniLM):
        self.model = model

    @property
    def weight_bytes(self) -> int:
        return self.model.dtype.itemsize

    def open(self, capacity: int) -> Slots:
        joined = can_join(self.model.new_cache())
        return JoinedSlots(self.model, capacity) if joined else SeparateSlots(self.model, capacity)

    def text_logits(self, hidden: Tensor) -> Tensor:
        return self.model.text_logits(hidden)

    def audio_logits(self, hidden: Tensor) -> Tensor:
        return torch.cat(self.model.audio_logits(hidden), dim=-1)


class JoinedSlots(Slots):
    """Slots that store all sequences right-aligned in one KV cache."""

    def __init__(self, model: OmniLM, capacity: int):
        self.model, self.capacity, self.lengths = model, capacity, []
        self.cache = model.new_cache()
        self.columns = 0
        self._order: list[int] | None = None  # cache row of each slot; None = slot i is row i

    def prefill(self, prompts: Sequence[Tensor], after: Sequence[JoinedParked | None] | None = None) -> Prefill:
        return begin_in_parts(prompts, after, lambda some, before: JoinedPrefill(self.model, some, before))

    def admit(self, prefill: Prefill) -> None:
        assert not prefill.left, "a prefill with positions left"
        for part in parts_of(prefill):
            self._admit(part)

    def _admit(self, prefill: JoinedPrefill) -> None:
        assert len(self) + len(prefill.lengths) <= self.capacity, "more sequences than there is room for"
        self._reorder()
        if not self.lengths:
            self.cache, self.columns = prefill.cache, prefill.columns
        else:
            self.columns = max(self.columns, prefill.columns)
            for own, other in zip(_filled(self.cache), _filled(prefill.cache), strict=True):
                self._join(own, other)
        self.lengths = [*self.lengths, *prefill.lengths]

    def _join(self, own: Any, other: Any) -> None:
        columns = max(own.keys.shape[2], other.keys.shape[2])
        own.keys = torch.cat([_widen(own.keys, columns), _widen(other.keys, columns)])
        own.values = torch.cat([_widen(own.values, columns), _widen(other.values, columns)])
        _count(own, self.columns)

    def advance(self, embeddings: Tensor) -> Hidden:
        assert len(embeddings) == len(self), "embeddings for each sequence"
        self._reorder()
        self._narrow()
        lengths = torch.tensor(self.lengths).to(embeddings.device, non_blocking=True)
        self.columns += 1
        mask = _right_aligned(lengths + 1, self.columns)
        hidden = self.model.hidden(embeddings[:, None], positions=lengths[:, None], mask=mask, cache=self.cache)
        self.lengths = [length + 1 for length in self.lengths]
        return Hidden(hidden.text[:, 0], hidden.audio[:, 0])

    def copy(self, slot: int) -> None:
        order = self._rows()
        self._order = [*order, order[slot]]
        self.lengths = [*self.lengths, self.lengths[slot]]

    def release(self, slot: int) -> None:
        order, lengths = self._rows(), list(self.lengths)
        order[slot], lengths[slot] = order[-1], lengths[-1]
        self._order, self.lengths = order[:-1], lengths[:-1]
        if not self.lengths:
            self._reorder()  # frees the memory

    def park(self, slot: int) -> JoinedParked:
        row, length = self._rows()[slot], self.lengths[slot]
        cache = copy_cache(self.cache)
        for layer in _filled(cache):
            first = max(0, layer.keys.shape[2] - length)
            layer.keys = layer.keys[row : row + 1, :, first:].clone()
            layer.values = layer.values[row : row + 1, :, first:].clone()
            _count(layer, length)
        self.release(slot)
        return JoinedParked(cache, length)

    def _rows(self) -> list[int]:
        return list(range(len(self.lengths))) if self._order is None else self._order

    def _reorder(self) -> None:
        """Rearrange the rows of the KV cache after slots were released or copied."""
        order, self._order = self._order, None
        if order is None:
            return
        if not order:
            self.cache, self.columns = self.model.new_cache(), 0
            return
        device = self.model.device
        self._change(lambda cached: cached.index_select(0, torch.tensor(order, device=device)))

    def _narrow(self) -> None:
        """Remove the leading columns that no sequence uses, once they are half of all."""
        longest = max(self.lengths)
        if 2 * longest <= self.columns:
            self.columns = longest
            self._change(lambda cached: cached[:, :, max(0, cached.shape[2] - longest) :])

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        for layer in _filled(self.cache):
            layer.keys, layer.values = change(layer.keys), change(layer.values)
            _count(layer, self.columns)


class JoinedParked(Parked):
    """A parked sequence as the only row of a KV cache [1, G, L, E] of the backbone's own kind."""

    def __init__(self, cache: Cache, length: int):
        self.cache, self.length = cache, length

    def cache_to_continue(self) -> Cache:
        """Return a KV cache of the same positions that can be extended without changing this one."""
        return copy_cache(self.cache)

    def crop(self, length: int) -> None:
        assert 0 < length <= self.length, "a sequence is cropped to positions that it has"
        if length == self.length:
            return
        if any(layer.keys.shape[2] < self.length for layer in _filled(self.cache)):
            raise ValueError("the backbone attends within a window: its cache cannot be cropped")
        for layer in _filled(self.cache):
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
            _count(layer, length)
        self.length = length


class JoinedPrefill(Prefill):
    """Prefill of several prompts as one left-padded batch, or of one prompt that continues a parked sequence."""

    def __init__(
        self, model: OmniLM, prompts: Sequence[Tensor], after: JoinedParked | SeparateParked | None = None
    ):
        assert after is None or len(prompts) == 1, "a sequence is continued alone"
        before = 0 if after is None else after.length
        self.model, self.cache = model, model.new_cache() if after is None else after.cache_to_continue()
        self.lengths = [before + len(prompt) for prompt in prompts]
        self.columns, self.done, self.before = max(self.lengths), before, before
        self.embeddings = pad_sequence(list(prompts), batch_first=True, padding_side="left")
        self.mask = _right_aligned(torch.tensor(self.lengths, device=self.embeddings.device), self.columns)
        self.positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)

    @property
    def left(self) -> int:
        return (self.columns - self.done) * len(self.lengths)

    def advance(self, positions: int) -> None:
        begin, self.done = self.done, min(self.columns, self.done + max(1, positions // len(self.lengths)))
        chunk = slice(begin, self.done)
        where = {"positions": self.positions[:, chunk], "mask": self.mask[:, : self.done], "cache": self.cache}
        self.model.hidden(self.embeddings[:, begin - self.before : self.done - self.before], **where)


class SeparateSlots(Slots):
    """Slots that store each sequence in a KV cache of its own, for backbones whose caches cannot be joined."""

    def __init__(self, model: OmniLM, capacity: int):
        self.model, self.capacity, self.lengths = model, capacity, []
        self.caches: list[Cache] = []

    def prefill(
        self, prompts: Sequence[Tensor], after: Sequence[SeparateParked | None] | None = None
    ) -> PrefillInParts:
        pairs = zip(prompts, after or [None] * len(prompts), strict=True)
        return PrefillInParts([JoinedPrefill(self.model, [prompt], parked) for prompt, parked in pairs])

    def admit(self, prefill: PrefillInParts) -> None:
        self.caches += [part.cache for part in prefill.parts]
        self.lengths = [*self.lengths, *(part.columns for part in prefill.parts)]

    def advance(self, embeddings: Tensor) -> Hidden:
        found = []
        for slot, cache in enumerate(self.caches):
            positions = torch.full((1, 1), self.lengths[slot], device=embeddings.device)
            mask = positions.new_ones(1, self.lengths[slot] + 1)
            found.append(self.model.hidden(embeddings[slot, None, None], positions=positions, mask=mask, cache=cache))
        self.lengths = [length + 1 for length in self.lengths]
        return Hidden(torch.cat([each.text[:, 0] for each in found]), torch.cat([each.audio[:, 0] for each in found]))

    def copy(self, slot: int) -> None:
        self.caches.append(copy.deepcopy(self.caches[slot]))
        self.lengths = [*self.lengths, self.lengths[slot]]

    def release(self, slot: int) -> None:
        for values in (self.caches, self.lengths):
            values[slot] = values[-1]
            values.pop()

    def park(self, slot: int) -> SeparateParked:
        parked = SeparateParked(self.caches[slot], self.lengths[slot])
        self.release(slot)
        return parked


class SeparateParked(Parked):
    """A parked sequence in a KV cache of its own that does not show its keys and values."""

    def __init__(self, cache: Cache, length: int):
        self.cache, self.length = cache, length

    def cache_to_continue(self) -> Cache:
        """Return a KV cache of the same positions that can be extended without changing this one."""
        return copy.deepcopy(self.cache)

    def crop(self, length: int) -> None:
        assert 0 < length <= self.length, "a sequence is cropped to positions that it has"
        if length < self.length:
            raise ValueError("the backbone's cache cannot be cropped: it does not show its keys and values")


def copy_cache(cache: Cache) -> Cache:
    """Return a copy of a KV cache with layers of its own, whose keys and values are still the same tensors.

    Layers replace their tensors when positions are appended, so the caches can be continued independently.
    """
    parts = [copy.copy(part) for part in (cache.llm, cache.tts)]
    for part in parts:
        if part is not None:
            part.layers = [copy.copy(layer) for layer in part.layers]
    return Cache(*parts)


def _filled(cache: Cache) -> list[Any]:
    """Return the layers of a KV cache that hold keys and values; in some models blocks share those of other blocks."""
    return [layer for layer in layers(cache) if layer.keys is not None]


def _widen(cached: Tensor, columns: int) -> Tensor:
    """Pad keys or values [R, G, C, E] with zeros on the left to [R, G, columns, E]."""
    return pad(cached, (0, 0, columns - cached.shape[2], 0))


def _count(layer: Any, columns: int) -> None:
    """Set the number of positions that a sliding-window cache layer has seen; such a layer stores fewer of them."""
    if hasattr(layer, "cumulative_length"):
        layer.cumulative_length = columns


def _right_aligned(lengths: Tensor, columns: int) -> Tensor:
    """Return an int64 mask [R, columns] with 1 in the last columns of each row, as many as its length [R] says."""
    return (torch.arange(columns, device=lengths.device) >= columns - lengths[:, None]).long()
