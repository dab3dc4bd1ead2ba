"""Steps over caches of fixed size: each is the same computation on the same memory, so that torch can compile it, and a
GPU can replay it as one CUDA graph in place of hundreds of kernels launched one by one.

Prompts go through the model as they always do, and what they leave in its cache moves to the fixed one. Caches are as
long as they need to be, rounded up to a power of two; what outgrows one moves on to the next size.

Letters: B rows, C positions with those before, S streams, D width.
"""

from __future__ import annotations

import os
import shutil
import sys
import weakref
from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor
from transformers import Cache as KeyValues
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from omnikit.model import Cache, Hidden, OmniLM, Speech

SMALLEST = 256
"""Positions of the shortest cache."""
KEPT = 4
"""Caches that are kept for further answers, those used last."""
COMPILERS = ("g++", "clang++", "cl")
UNRECORDED = 3
"""Runs of a step before it is recorded."""
FULL, SLIDING = "full_attention", "sliding_attention"
"""What a block may attend to, as transformers names it: all positions before it, or those in a window."""
ATTENTION = ("sdpa", "eager")
"""Ways of attending that take a finished mask."""


class StaticEngine:
    """An `Engine`.

    Args:
        model: whose weights are used as they are, where they are.
        compiled: let `torch.compile` compile the step, at the first one for each number of rows and size of cache.

    Raises:
        ValueError: blocks that keep something else than keys and values, or attend in another way; or no compiler.
    """

    def __init__(self, model: OmniLM, *, compiled: bool = False):
        self.model, self.weight_bytes = model, model.weight_bytes
        _check(model)
        if compiled and find_compiler() is None:  # torch would say so at the first step, in many lines
            raise ValueError(
                f"engine compiled: no C++ compiler ({os.environ.get('CXX') or ', '.join(COMPILERS)}); "
                "install one, name it in CXX, or take another engine"
            )
        self.compiled = compiled
        self.compute: Callable[..., Hidden] = torch.compile(model, dynamic=False) if compiled else model
        self.text_logits, self.audio_logits = model.text_logits, model.audio_logits
        self._kept: list[Slots] = []
        self._lock = Lock()  # of what is kept

    @torch.inference_mode()
    def __call__(
        self, steps: Tensor, speech: Speech | None = None, *, positions: Tensor, mask: Tensor, cache: StaticCache
    ) -> Hidden:
        before = mask.shape[1] - steps.shape[2]
        if steps.shape[2] > 1 or not before:
            return self.model(steps, speech, positions=positions, mask=mask, cache=cache.prompt())
        return cache.slots_for(len(steps), before).step(steps, positions, mask)

    def new_cache(self) -> StaticCache:
        return StaticCache(self)

    def take(self, rows: int, room: int) -> Slots:
        """Slots that no answer uses."""
        with self._lock:
            for slots in self._kept:
                if (slots.rows, slots.room) == (rows, room):
                    self._kept.remove(slots)
                    return slots
        if self.compiled:
            print(f"engine compiled: a step of {rows} rows among {room} positions, once", file=sys.stderr)
        return Slots(self, rows, room)

    def give_back(self, slots: Slots) -> None:
        """They are free for another answer."""
        with self._lock:
            self._kept = [*self._kept, slots][-KEPT:]


class StaticCache:
    """The cache of some answers: the model's own until the prompts are through, slots from then on."""

    def __init__(self, engine: StaticEngine):
        self.engine = engine
        self.grown: Cache | None = engine.model.new_cache()
        self.slots: Slots | None = None
        self.selected: Tensor | None = None
        self._give_back: Callable[[], None] | None = None  # also when the answer is dropped

    def prompt(self) -> Cache:
        """The cache for prompts.

        Raises:
            ValueError: single steps have begun.
        """
        if self.grown is None:
            raise ValueError("engine static: after single steps there is no way back to several positions at a time")
        return self.grown

    def select(self, rows: Tensor) -> None:
        """As `omnikit.model.Cache.select`."""
        if self.grown is not None:
            self.grown.select(rows)
        else:
            self.selected = rows if self.selected is None else self.selected[rows]

    def slots_for(self, rows: int, before: int) -> Slots:
        """The slots of the next step, with what the `before` positions left."""
        if self.slots is None or self.selected is not None or before == self.slots.room:
            self._move(rows, before)
        return self.slots

    def _move(self, rows: int, before: int) -> None:
        slots = self.engine.take(rows, max(SMALLEST, 1 << before.bit_length()))
        slots.fill(self.grown if self.slots is None else self.slots.cache, before, self.selected)
        if self._give_back is not None:
            self._give_back()
        self.grown, self.slots, self.selected = None, slots, None
        self._give_back = weakref.finalize(self, self.engine.give_back, slots)


class Slots:
    """Room for the keys and values of some rows, what a step reads and writes, and on a GPU the recorded step."""

    def __init__(self, engine: StaticEngine, rows: int, room: int):
        model, self.compute, self.rows, self.room = engine.model, engine.compute, rows, room
        grown = model.new_cache()
        self.cache = Cache(*(cache and _fixed(cache, room) for cache in (grown.llm, grown.tts)))
        self.layers = _layers(self.cache)
        self.windows = {_kind(layer): getattr(layer, "sliding_window", None) for layer in grown.llm.layers}
        shape = rows, 1, 1, room
        self.masks = {kind: torch.zeros(shape, dtype=model.dtype, device=model.device) for kind in self.windows}
        self.steps = torch.zeros(rows, model.layout.num_streams, 1, dtype=torch.long, device=model.device)
        self.positions = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.hidden: Hidden | None = None  # of the last step; the graph writes it in place

    def fill(self, cache: Cache, before: int, selected: Tensor | None) -> None:
        """Take over what `before` positions left in another cache, of the selected rows."""
        for own, other in zip(self.layers, _layers(cache), strict=True):
            keys, values = other.keys[:, :, :before], other.values[:, :, :before]
            if selected is not None:
                keys, values = keys[selected], values[selected]
            if not own.is_initialized:
                own.lazy_initialization(keys, values)
            first = before - keys.shape[2]  # of those within a window, the last are there
            own.keys[:, :, first:before] = keys
            own.values[:, :, first:before] = values
        self._count(before)

    def step(self, steps: Tensor, positions: Tensor, mask: Tensor) -> Hidden:
        """Steps [B, S, 1], positions [B, 1] and mask [B, C] -> hidden states of the new position [B, 1, D]."""
        self.steps.copy_(steps)
        self.positions.copy_(positions)
        self._set_masks(mask)
        if not self.steps.is_cuda:
            self._run()
        else:
            if self.graph is None:
                self._record(mask.shape[1] - 1)
            self.graph.replay()
        return Hidden(self.hidden.text.clone(), self.hidden.audio.clone())

    def _set_masks(self, mask: Tensor) -> None:
        """What the scores of the positions get, for each kind of block [B, 1, 1, room]."""
        known = mask.shape[1]
        for kind, scores in self.masks.items():
            least = torch.finfo(scores.dtype).min
            scores.fill_(least)
            first = max(0, known - (self.windows[kind] or known))
            scores[:, 0, 0, first:known] = (mask[:, first:] <= 0) * least

    def _run(self) -> None:
        mask = self.masks if len(self.masks) > 1 else next(iter(self.masks.values()))
        self.hidden = self.compute(self.steps, positions=self.positions, mask=mask, cache=self.cache)

    def _record(self, before: int) -> None:
        """Record the step. What libraries set up at a first call must not be recorded, so it runs before, as often as
        torch's documentation of CUDA graphs has it; that leaves nothing in the cache that counts."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(UNRECORDED):
                self._run()
                self._count(before)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self._run()

    def _count(self, before: int) -> None:
        """Say how many positions the cache has."""
        for layer in self.layers:
            layer.cumulative_length.fill_(before)


def _check(model: OmniLM) -> None:
    config = model.llm.config
    if (kind := config._attn_implementation) not in ATTENTION:
        raise ValueError(f"engine static: cannot run llm.attention {kind} (choices: {', '.join(ATTENTION)})")
    for layer in _layers(model.new_cache()):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise ValueError(
                f"engine static: cannot run a backbone of the type {config.model_type}: "
                f"its blocks keep something else than keys and values ({type(layer).__name__})"
            )


def find_compiler() -> str | None:
    """The C++ compiler that `torch.compile` would take: the one that CXX names, or a usual one."""
    return next(filter(None, map(shutil.which, [os.environ["CXX"]] if "CXX" in os.environ else COMPILERS)), None)


def _layers(cache: Cache) -> list[CacheLayerMixin]:
    return [layer for part in (cache.llm, cache.tts) if part is not None for layer in part.layers]


def _fixed(cache: KeyValues, room: int) -> KeyValues:
    return KeyValues(layers=[StaticLayer(max_cache_len=room) for _ in cache.layers])


def _kind(layer: CacheLayerMixin) -> str:
    return SLIDING if layer.is_sliding else FULL
