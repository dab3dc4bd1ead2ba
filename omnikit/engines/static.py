"""Steps over caches of fixed size: each is the same computation on the same memory, so that torch can compile it, and a
GPU can replay it as one CUDA graph in place of hundreds of kernels launched one by one.

Prompts go through the model as they always do, and what they leave in its cache moves to the fixed one. Caches are as
long as they need to be, rounded up to a power of two; what outgrows one moves on to the next size. Heads and the choice
of tokens are not part of the graph.

Letters: B rows, C positions with those before, S streams, D width.
"""

from __future__ import annotations

import os
import shutil
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers import Cache as KeyValues
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from omnikit.model import Cache, Hidden, OmniLM, Speech

SMALLEST = 256
"""Positions of the shortest cache."""
KEPT = 4
"""Caches that are kept for further answers, those used last."""
SHAPES = 64
"""Numbers of rows times sizes of cache that torch may compile a step for; it stops at 8 by itself."""
UNRECORDED = 3
"""Runs of a step before it is recorded."""
FULL, SLIDING = "full_attention", "sliding_attention"
"""What a block may attend to, as transformers names it: all positions before it, or those in a window."""
ATTENTION = ("sdpa", "eager")
"""Ways of attending that take a finished mask."""
CHANGING = ("dynamic", "longrope")
"""Rotary positions whose rates depend on how long the sequence is: a step would not be the same each time."""
_RECORDING = Lock()
"""One graph is recorded at a time in a process, see `torch.cuda.graph`."""


class StaticEngine:
    """An `Engine`.

    Args:
        model: whose weights are used as they are, where they are.
        compiled: let `torch.compile` compile the step, at the first one for each number of rows and size of cache.

    Raises:
        ValueError: a backbone whose steps are not the same each time, or that cannot be told what to attend to.
    """

    def __init__(self, model: OmniLM, *, compiled: bool = False):
        self.model, self.weight_bytes = model, model.weight_bytes
        _check(model)
        self.compute: Callable[..., Hidden] = model
        self.compiled: set[tuple[int, int]] | None = None  # rows and positions
        if compiled:
            torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
            self.compute, self.compiled = torch.compile(model, dynamic=False), set()
        self.text_logits, self.audio_logits = model.text_logits, model.audio_logits
        # answers are also dropped by the garbage collector, in the middle of anything: no lock, appending is enough
        self._free: deque[Slots] = deque(maxlen=KEPT)

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
        """Slots for so many rows and positions that no answer uses."""
        others, found = [], None
        for slots in self._taken():
            if found is None and (slots.rows, slots.room) == (rows, room):
                found = slots
            else:
                others.append(slots)
        self._free.extend(others)
        if found is None and self.compiled is not None and (rows, room) not in self.compiled:
            print(f"engine compiled: compiling a step of {rows} rows among {room} positions, once", file=sys.stderr)
            self.compiled.add((rows, room))
        return found or Slots(self, rows, room)

    def give_back(self, slots: Slots) -> None:
        """They are free for another answer."""
        self._free.append(slots)

    def _taken(self) -> Iterator[Slots]:
        """Those that are free, taken out, the one that was free first first."""
        try:
            while True:
                yield self._free.popleft()
        except IndexError:
            return


class StaticCache:
    """The cache of some answers: the model's own until the prompts are through, slots from then on."""

    def __init__(self, engine: StaticEngine):
        self.engine = engine
        self.grown: Cache | None = engine.model.new_cache()  # of the prompts; None when slots have taken it over
        self.slots: Slots | None = None
        self.selected: Tensor | None = None
        self._give_back: Callable[[], None] | None = None  # also when the answer is dropped

    def prompt(self) -> Cache:
        """The cache for prompts.

        Raises:
            ValueError: single steps have begun.
        """
        if self.grown is None:
            raise ValueError("after single steps this engine cannot go back to several positions at a time")
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
        self.cache = Cache(_fixed(grown.llm, room), None if grown.tts is None else _fixed(grown.tts, room))
        self.layers = _layers(self.cache)
        self.windows = {_kind(layer): getattr(layer, "sliding_window", None) for layer in grown.llm.layers}
        shape = rows, 1, 1, room
        self.masks = {kind: torch.zeros(shape, dtype=model.dtype, device=model.device) for kind in self.windows}
        self.steps = torch.zeros(rows, model.layout.num_streams, 1, dtype=torch.long, device=model.device)
        self.positions = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.hidden: Hidden | None = None  # what the graph writes

    def fill(self, cache: Cache, before: int, selected: Tensor | None) -> None:
        """Take over what `before` positions left in another cache, of the selected rows."""
        for own, other in zip(self.layers, _layers(cache), strict=True):
            keys, values = other.keys[:, :, :before], other.values[:, :, :before]
            if selected is not None:
                keys, values = keys[selected], values[selected]
            if not own.is_initialized:
                own.lazy_initialization(keys, values)
            first = before - keys.shape[2]  # of those within a window, the last are there
            for kept, new in ((own.keys, keys), (own.values, values)):
                kept.zero_()  # what another answer left is masked, but a NaN would come through
                kept[:, :, first:before] = new
        self._count(before)

    def step(self, steps: Tensor, positions: Tensor, mask: Tensor) -> Hidden:
        """Steps [B, S, 1], positions [B, 1] and mask [B, C] -> hidden states of the new position [B, 1, D]."""
        self.steps.copy_(steps)
        self.positions.copy_(positions)
        self._set_masks(mask)
        if not self.steps.is_cuda:
            return self._run()
        with torch.cuda.device(self.steps.device):
            if self.graph is None:
                self._record(mask.shape[1] - 1)
            self.graph.replay()
        return Hidden(self.hidden.text.clone(), self.hidden.audio.clone())  # the next replay writes over it

    def _set_masks(self, mask: Tensor) -> None:
        """What the scores of the positions get, for each kind of block [B, 1, 1, room]."""
        known = mask.shape[1]
        for kind, scores in self.masks.items():
            least = torch.finfo(scores.dtype).min
            scores.fill_(least)
            first = max(0, known - (self.windows[kind] or known))
            scores[:, 0, 0, first:known] = (mask[:, first:] <= 0) * least

    def _run(self) -> Hidden:
        mask = self.masks if len(self.masks) > 1 else next(iter(self.masks.values()))
        return self.compute(self.steps, positions=self.positions, mask=mask, cache=self.cache)

    def _record(self, before: int) -> None:
        """Record the step. What libraries set up at a first call must not be recorded, so it runs before, as often as
        torch's documentation of CUDA graphs has it; that leaves nothing in the cache that counts.

        Meanwhile no other thread may wait for the GPU or draw from its default generator, or recording fails.
        """
        with _RECORDING:
            aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(UNRECORDED):
                    self._run()
                    self._count(before)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                hidden = self._run()
            self.graph, self.hidden = graph, hidden

    def _count(self, before: int) -> None:
        """Say how many positions the cache has."""
        for layer in self.layers:
            layer.cumulative_length.fill_(before)


def find_compiler() -> str | None:
    """The C++ compiler that `torch.compile` takes: the one that CXX names, or the usual one of the system."""
    return shutil.which(wanted_compiler())


def wanted_compiler() -> str:
    """Its name."""
    usual = {"darwin": "clang++", "win32": "cl"}
    return os.environ.get("CXX") or usual.get(sys.platform, "g++")


def _check(model: OmniLM) -> None:
    config, trunk = model.llm.config, model.llm.trunk
    about = f"engine static: cannot run a backbone of the type {config.model_type}"
    if (kind := config._attn_implementation) not in ATTENTION:
        raise ValueError(f"engine static: cannot run llm.attention {kind} (choices: {', '.join(ATTENTION)})")
    if not (trunk._can_compile_fullgraph and trunk._supports_attention_backend):
        raise ValueError(f"{about}: it cannot be told what to attend to, or does different things at each step")
    for layer in _layers(model.new_cache()):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise ValueError(f"{about}: its blocks keep something else than keys and values ({type(layer).__name__})")
    if changing := set(_rope_types(getattr(config, "rope_parameters", None))).intersection(CHANGING):
        raise ValueError(f"{about} with {', '.join(changing)} rotary positions: they depend on the length")


def _rope_types(numbers: Any) -> Iterator[str]:
    """Of a configuration's rotary positions; some have several, by kind of block."""
    if isinstance(numbers, Mapping):
        if "rope_type" in numbers:
            yield numbers["rope_type"]
        for inner in numbers.values():
            yield from _rope_types(inner)


def _layers(cache: Cache) -> list[CacheLayerMixin]:
    return [layer for part in (cache.llm, cache.tts) if part is not None for layer in part.layers]


def _fixed(cache: KeyValues, room: int) -> KeyValues:
    return KeyValues(layers=[StaticLayer(max_cache_len=room) for _ in cache.layers])


def _kind(layer: CacheLayerMixin) -> str:
    return SLIDING if layer.is_sliding else FULL
