"""Decoding over a KV cache of fixed size, which torch can compile and a GPU can replay as one CUDA graph.

Each decode step is the same computation on the same memory, from the embeddings of the last tokens to the choice of the
next ones. A sequence is a row of the cache with its first position at the left and a length of its own; columns after
its last position are masked. The number of columns is a power of two and grows with the longest sequence. The blocks
are those of `omnikit.llms.llama`, over the weights of the model.

Letters: R sequences of a step, L positions, C columns of the cache that a step reads, D width, G heads of keys and
values, E width of a head.
"""

from __future__ import annotations

import os
import shutil
import sys
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omnikit.cuda_graphs import CudaGraphs, GraphRecorder
from omnikit.engines.continued import begin_in_parts, parts_of
from omnikit.interfaces import Engine, Hidden, Parked, Prefill, Slots
from omnikit.llms.llama import JoinedLinear, LlamaConfig, attention_bias, blocks_of, normed, rotary_tables, supports
from omnikit.model import OmniLM

SMALLEST = 256
"""Minimum number of columns of the KV cache."""
SMALLEST_PROMPT = 64
"""Minimum number of positions per prompt that a prefill recorded as a CUDA graph computes."""
MOST_RECORDED = 1024
"""Maximum number of positions of all prompts in a prefill recorded as a CUDA graph; larger ones need no graph."""
SHAPES = 64
"""Maximum number of shapes (rows, cache size) for which torch may compile a decode step; its own limit is 8."""

StaticCache = list[Tensor]
"""Type of a KV cache of fixed size: keys and values of each block [rows, 2 G, room, E], keys first."""


class StaticEngine(Engine):
    """An engine that decodes over a preallocated KV cache.

    Args:
        model: model whose weights are used in place, on its final device and in its final type. The engine keeps
            reading the old memory of weights that are moved, cast or replaced later.
        compiled: compile the blocks of a decode step with `torch.compile`, at the first step for each number of rows
            and size of cache.

    Raises:
        ValueError: a backbone that is not of Llama's kind.
    """

    parks = True

    def __init__(self, model: OmniLM, *, compiled: bool = False):
        self.name = "compiled" if compiled else "static"
        if reason := unsupported_reason(model):
            raise ValueError(f"engine {self.name}: {reason}")
        self.model, self.weight_bytes = model, model.dtype.itemsize
        self.numbers = LlamaConfig.of(model.llm.config)
        self.trunk = blocks_of(model.llm.trunk, joined=True)
        adapter = model.tts_adapter
        self.adapter = [] if adapter is None else blocks_of(adapter.trunk, first=len(self.trunk), joined=True)
        self.windows = {block.window for block in (*self.trunk, *self.adapter)}
        self.text_head = JoinedLinear([model.llm.lm_head, model.new_text_embeddings.head], joined=True)
        self.compute: Callable[[Tensor, Tensor, StaticCache, int], Hidden] = self._one_position
        self.compiled: set[tuple[int, ...]] | None = None
        if compiled:
            torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
            self.compute, self.compiled = torch.compile(self._one_position, dynamic=False), set()

    def open(self, capacity: int) -> StaticSlots:
        return StaticSlots(self, capacity)

    def text_logits(self, hidden: Tensor) -> Tensor:
        return self.text_head(hidden)

    def audio_logits(self, hidden: Tensor) -> Tensor:
        return self.model.new_audio_embeddings.head(hidden)

    def new_cache(self, rows: int, room: int) -> StaticCache:
        """Return an empty KV cache filled with zeros: masked values are multiplied by 0, which must not meet a NaN."""
        shape = rows, 2 * self.numbers.num_key_value_heads, room, self.numbers.head_dim
        blocks = (*self.trunk, *self.adapter)
        return [torch.zeros(shape, dtype=self.model.dtype, device=self.model.device) for _ in blocks]

    def prompt_positions(self, embeddings: Tensor, begin: int, cache: StaticCache) -> None:
        """Compute the keys and values of further prompt positions, and write them to the first R rows of a KV cache.

        Args:
            embeddings: embeddings of the positions [R, L, D].
            begin: column of the first of them.
            cache: KV cache that is read and written.
        """
        rows, end = len(embeddings), begin + embeddings.shape[1]
        places = torch.arange(begin, end, device=embeddings.device)[None]

        def keep(number: int, new: Tensor) -> tuple[Tensor, Tensor]:
            own = cache[number][:rows, :, :end]
            own[:, :, begin:] = new.transpose(1, 2)
            return own.chunk(2, dim=1)

        self._blocks(embeddings, places, end, keep)

    def _one_position(self, embeddings: Tensor, positions: Tensor, cache: StaticCache, columns: int) -> Hidden:
        """Compute the hidden states of one further position of the sequences in the first R rows of a KV cache.

        Args:
            embeddings: embeddings of the positions [R, D].
            positions: position of each sequence [R].
            cache: KV cache that is read and written.
            columns: number of columns of the cache that are read; all positions must be within.
        """
        rows, places = torch.arange(len(embeddings), device=embeddings.device)[:, None], positions[:, None]

        def keep(number: int, new: Tensor) -> tuple[Tensor, Tensor]:
            cache[number][rows, :, places] = new
            return cache[number][: len(embeddings), :, :columns].chunk(2, dim=1)

        trunk, adapted = self._blocks(embeddings[:, None], places, columns, keep)
        text = normed(trunk, self.model.llm.norm)[:, 0]
        if not self.adapter:
            return Hidden(text, text)
        return Hidden(text, normed(adapted, self.model.tts_adapter.trunk.norm)[:, 0])

    def _blocks(self, embeddings: Tensor, places: Tensor, columns: int, keep: Callable) -> tuple[Tensor, Tensor]:
        """Compute the outputs of all blocks for embeddings [R, L, D] at columns [R or 1, L] of a KV cache.

        Returns:
            The outputs [R, L, D] of the backbone and of the TTS adapter.
        """
        dtype = embeddings.dtype
        turn = rotary_tables(places, self.model.llm.trunk.rotary_emb, self.numbers, dtype)
        bias = {window: attention_bias(places, columns, window, dtype) for window in self.windows}
        x = embeddings.clone(memory_format=torch.contiguous_format)  # blocks overwrite it
        for block in self.trunk:
            x = block(x, turn, bias, keep)
        adapted = x.clone() if self.adapter else x
        for block in self.adapter:
            adapted = block(adapted, turn, bias, keep)
        return x, adapted


class StaticParked(Parked):
    """A parked sequence as keys and values of each block [2 G, L, E], keys first."""

    def __init__(self, cache: list[Tensor]):
        self.cache = cache

    @property
    def length(self) -> int:
        return self.cache[0].shape[1]

    def crop(self, length: int) -> None:
        assert 0 < length <= self.length, "a sequence is cropped to positions that it has"
        self.cache = [own[:, :length] for own in self.cache]


class StaticPrefill(Prefill):
    """Prefill of several prompts as one right-padded batch, in a KV cache of its own.

    Longer prompts come first, so that the prompts with positions left are always the first rows.

    Args:
        recorded: function that computes all prompts of a prefill by a CUDA graph and returns their KV cache, or None if
            it cannot; its arguments are the prefill and the number of positions that may be computed.
        after: parked sequence that a single prompt continues; it is not recorded.
    """

    def __init__(
        self,
        engine: StaticEngine,
        prompts: Sequence[Tensor],
        recorded: Callable[[StaticPrefill, int], StaticCache | None] = lambda prefill, positions: None,
        after: StaticParked | None = None,
    ):
        assert prompts and all(len(prompt) for prompt in prompts), "each prompt has positions"
        assert after is None or len(prompts) == 1, "a sequence is continued alone"
        self.engine, self.recorded, self.before = engine, recorded, 0 if after is None else after.length
        self.lengths = [self.before + len(prompt) for prompt in prompts]
        by_length = sorted(range(len(prompts)), key=lambda i: -self.lengths[i])
        self.rows = {i: row for row, i in enumerate(by_length)}
        self.embeddings = pad_sequence([prompts[i] for i in by_length], batch_first=True)
        self.cache: StaticCache | None = None  # from the first call of `advance` on
        self.done = self.before  # number of columns that are computed; shorter prompts are complete
        self.left = sum(map(len, prompts))
        self.admitted = False
        if after is not None:
            self.cache = engine.new_cache(1, self.lengths[0])
            for own, parked in zip(self.cache, after.cache, strict=True):
                own[0, :, : self.before] = parked

    def advance(self, positions: int) -> None:
        if self.cache is None and (cache := self.recorded(self, positions)) is not None:
            self.cache, self.done, self.left = cache, max(self.lengths), 0
        active = sum(length > self.done for length in self.lengths)
        if not active:
            return
        if self.cache is None:
            self.cache = self.engine.new_cache(len(self.lengths), max(self.lengths))
        end = min(self.done + max(1, positions // active), max(self.lengths))
        new = self.embeddings[:active, self.done - self.before : end - self.before]
        self.engine.prompt_positions(new, self.done, self.cache)
        self.done = end
        self.left = sum(max(0, length - end) for length in self.lengths)


class RecordedPrompts:
    """Preallocated GPU memory in which prompts of limited length are prefilled by one call recorded as a CUDA graph.

    One prefill may use it at a time.
    """

    def __init__(self, engine: StaticEngine, rows: int, room: int):
        model = engine.model
        self.engine, self.cache = engine, engine.new_cache(rows, room)
        self.embeddings = torch.zeros(rows, room, model.llm.dim, dtype=model.dtype, device=model.device)
        self.user: weakref.ref[StaticPrefill] | None = None

    @property
    def free(self) -> bool:
        """Whether the keys and values of the last prompts are no longer needed, so that the memory is free again."""
        user = None if self.user is None else self.user()
        return user is None or user.admitted

    def compute(self, prefill: StaticPrefill, run: Callable[[Callable[[], None]], None]) -> StaticCache:
        """Compute all prompts of a prefill and return their KV cache.

        Args:
            run: function that executes or replays the call that it is given.
        """
        self.user = weakref.ref(prefill)
        rows, longest = prefill.embeddings.shape[:2]
        self.embeddings.zero_()
        self.embeddings[:rows, :longest] = prefill.embeddings
        run(lambda: self.engine.prompt_positions(self.embeddings, 0, self.cache))
        return self.cache


class StaticSlots(Slots):
    """Slots whose sequences are the rows of one preallocated KV cache; on a GPU their decode steps are CUDA graphs.

    The cache holds zeros at all positions that no sequence has, except for the first column of free rows.
    """

    def __init__(self, engine: StaticEngine, capacity: int):
        self.engine, self.capacity, self.lengths = engine, capacity, []
        device = engine.model.device
        self.room, self.cache = SMALLEST, engine.new_cache(capacity, SMALLEST)
        # the lengths on the device, which a step increases by `counts`: 1 for rows in use, else 0
        self.positions = torch.zeros(capacity, dtype=torch.long, device=device)
        self.counts = torch.zeros(capacity, dtype=torch.long, device=device)
        self.recorder = GraphRecorder(CudaGraphs(device)) if device.type == "cuda" else None
        self.prompts: dict[tuple[int, int], RecordedPrompts] = {}

    def prefill(self, prompts: Sequence[Tensor], after: Sequence[StaticParked | None] | None = None) -> Prefill:
        return begin_in_parts(
            prompts, after, lambda some, before: StaticPrefill(self.engine, some, self._recorded_prompts, before)
        )

    def admit(self, prefill: Prefill) -> None:
        assert not prefill.left, "a prefill with positions left"
        for part in parts_of(prefill):
            self._admit(part)

    def _admit(self, prefill: StaticPrefill) -> None:
        self._make_room(max(prefill.lengths))
        for i, length in enumerate(prefill.lengths):
            slot = self._append(length)
            for own, other in zip(self.cache, prefill.cache, strict=True):
                own[slot, :, :length] = other[prefill.rows[i], :, :length]
        prefill.admitted = True

    def advance(self, embeddings: Tensor) -> Hidden:
        rows = self._begin_step()
        if self.engine.compiled is None:
            rows = len(self)
        missing = embeddings.new_zeros(rows - len(self), embeddings.shape[1])
        hidden = self._compute(torch.cat([embeddings, missing]), rows)
        self._end_step()
        return Hidden(hidden.text[: len(self)], hidden.audio[: len(self)])

    def step(
        self, embed: Callable[[int], Tensor], choose: Callable[[Hidden], None], variant: tuple[Any, ...] = ()
    ) -> None:
        """Do one decode step, see `Slots.step`.

        On a GPU the numbers of rows and of columns are rounded up to powers of two, and after some steps a CUDA graph
        is recorded for each pair of them and each variant. Rows without a sequence are computed, too, and ignored.
        """
        rows = self._begin_step()
        if self.recorder is None:
            choose(self._compute(embed(rows), rows))
        else:
            key = rows, self._columns(), variant
            self.recorder.run(key, lambda: choose(self._compute(embed(rows), rows)))
        self._end_step()

    def copy(self, slot: int) -> None:
        length = self.lengths[slot]
        new = self._append(length)
        for own in self.cache:
            own[new, :, :length] = own[slot, :, :length]

    def release(self, slot: int) -> None:
        last = len(self) - 1
        length, end = self.lengths[last], self.lengths[slot] + 1  # a failed step has written one position more
        for own in self.cache:
            if slot != last:
                own[slot, :, :length] = own[last, :, :length]
                own[slot, :, length:end] = 0
            own[last, :, : length + 1] = 0
        self._set(slot, length, 1)
        self._set(last, 0, 0)
        self.lengths.pop()

    def park(self, slot: int) -> StaticParked:
        length = self.lengths[slot]
        parked = StaticParked([own[slot, :, :length].clone() for own in self.cache])
        self.release(slot)
        return parked

    def _recorded_prompts(self, prefill: StaticPrefill, positions: int) -> StaticCache | None:
        """Compute all prompts of a prefill by a call recorded as a CUDA graph, and return their KV cache.

        A graph is recorded for each pair of powers of two that the numbers of prompts and of positions per prompt are
        rounded up to. Returns None if the prompts are too long for that or have more than `positions` positions, if the
        call's memory is in use, or on a CPU.
        """
        count, longest = prefill.embeddings.shape[:2]
        rows, room = key = _power_of_two(count), max(SMALLEST_PROMPT, _power_of_two(longest))
        if self.recorder is None or count * longest > positions or rows * room > MOST_RECORDED:
            return None
        if key not in self.prompts:
            self.prompts[key] = RecordedPrompts(self.engine, rows, room)
        place = self.prompts[key]
        return place.compute(prefill, partial(self.recorder.run, ("prompts", *key))) if place.free else None

    def _begin_step(self) -> int:
        """Make room for one further position of each sequence, and return the number of rows to compute."""
        assert self.lengths, "a step needs sequences"
        self._make_room(max(self.lengths) + 1)
        if self.recorder is None and self.engine.compiled is None:
            return len(self)
        rows = min(_power_of_two(len(self)), self.capacity)
        self._announce_compiling(rows)
        return rows

    def _end_step(self) -> None:
        self.lengths[:] = [length + 1 for length in self.lengths]

    def _compute(self, embeddings: Tensor, rows: int) -> Hidden:
        """Return the hidden states of embeddings [rows, D] and increment the sequences' positions on the device."""
        hidden = self.engine.compute(embeddings, self.positions[:rows], self.cache, self._columns())
        self.positions[:rows].add_(self.counts[:rows])
        return hidden

    def _columns(self) -> int:
        """Return the number of columns of the KV cache that a decode step reads.

        A recorded step reads a power of two of them. A compiled one reads the whole cache, whose size it is compiled
        for.
        """
        if self.engine.compiled is not None:
            return self.room
        needed = max(self.lengths) + 1
        return needed if self.recorder is None else max(SMALLEST, _power_of_two(needed))

    def _append(self, length: int) -> int:
        assert len(self) < self.capacity, "no slot is free"
        self.lengths.append(length)
        self._set(len(self) - 1, length, 1)
        return len(self) - 1

    def _set(self, slot: int, length: int, counts: int) -> None:
        self.lengths[slot] = length
        self.positions[slot], self.counts[slot] = length, counts

    def _make_room(self, needed: int) -> None:
        """Move all sequences to a larger KV cache if this one has fewer than `needed` columns; drop its CUDA graphs."""
        if needed <= self.room:
            return
        room = _power_of_two(needed)
        for number, own in enumerate(self.cache):
            larger = own.new_zeros(*own.shape[:2], room, own.shape[3])
            larger[:, :, : self.room] = own
            self.cache[number] = larger
        self.room = room
        if self.recorder is not None:
            self.recorder.clear()

    def _announce_compiling(self, rows: int) -> None:
        """Print to stderr that a decode step is about to be compiled, once for each shape."""
        shape = rows, self.room, self.capacity
        if self.engine.compiled is not None and shape not in self.engine.compiled:
            self.engine.compiled.add(shape)
            about = f"a step of {rows} rows among {self.room} positions"
            print(f"engine compiled: compiling {about}, once", file=sys.stderr)


def unsupported_reason(model: OmniLM) -> str | None:
    """Return the reason in one line why engines over `omnikit.llms.llama` cannot run a model, or None if they can."""
    config = getattr(model.llm, "config", None)
    if not all(hasattr(model.llm, name) for name in ("trunk", "norm", "lm_head")) or config is None:
        return f"cannot run a backbone of the class {type(model.llm).__name__}, only transformers' of Llama's kind"
    reason = supports(config)
    return reason and f"cannot run a backbone of the type {getattr(config, 'model_type', None)}: {reason}"


def find_compiler() -> str | None:
    """Return the path of the C++ compiler that `torch.compile` uses, or None if it is not installed."""
    return shutil.which(wanted_compiler())


def wanted_compiler() -> str:
    """Return the name of the C++ compiler that `torch.compile` looks for: the value of CXX, or the system's default."""
    usual = {"darwin": "clang++", "win32": "cl"}
    return os.environ.get("CXX") or usual.get(sys.platform, "g++")


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
