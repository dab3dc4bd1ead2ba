"""Rules of generation: which token each stream emits and when an answer ends, for all slots of a running batch at once.

Text: `eot` is emitted once, then pads. Text-only answers end at `eot` and do not emit it. Spoken answers end when the
last audio stream emits `eoa`; that whole step is dropped.

Everything that differs between answers is a column of a table with one row per slot, on the model's device. A decode
step is a fixed sequence of operations on these tables that never asks the device for a value, so that a CUDA graph can
record it.

Letters: R slots, S streams, A = S - 1 audio streams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from omnikit.generate.types import Decoding
from omnikit.interfaces import Engine, Hidden
from omnikit.model import OmniLM
from omnikit.sampling import noise_keys, sample, sampling_numbers
from omnikit.tasks import Task

_COLUMNS = (
    "step", "min_steps", "seed", "text_from", "audio_from", "text_over", "forced", "finished", "speaks", "text_only",
    "constrain", "end_frame",
)  # fmt: skip
"""Names of the integer columns of the per-slot state of running answers; `_SlotTable` explains them."""
NOT_YET = -1
"""Negative value of `end_frame` before the leading audio stream has ended, and of `forced` where text is sampled."""
_SMALLEST_TEXT = 64  # initial columns of the table of given texts


@dataclass(frozen=True)
class Variant:
    """The set of computations that a decode step needs for the running answers; steps with a smaller set are faster."""

    text: bool = False  # some answer's text has not ended, so text logits are needed
    forced: bool = False  # some answer's text is given
    speaks: bool = False  # some answer has audio
    shared: bool = False  # some slot reads the logits of another slot
    free: bool = False  # some answer is decoded without `Decoding.constrain`
    text_draws: bool = False
    text_cuts: bool = False
    text_penalises: bool = False
    audio_draws: bool = False
    audio_cuts: bool = False
    audio_penalises: bool = False


class Rules:
    """Per-slot state of the answers in a running batch, and the choice of their next tokens.

    Args:
        model: model that embeds tokens and has the token layout and the pattern.
        engine: engine that computes logits.
        capacity: number of slots.
    """

    def __init__(self, model: OmniLM, engine: Engine, capacity: int):
        self.model, self.engine, self.layout, self.pattern = model, engine, model.layout, model.pattern
        self.capacity, self.device = capacity, model.device
        streams = self.layout.num_streams
        self.integers = self._zeros(capacity, len(_COLUMNS))
        self.numbers = self._zeros(capacity, 2, 4, dtype=torch.float32)  # `sampling_numbers` of text and of audio
        self.audio_over = self._zeros(capacity, streams - 1, dtype=torch.bool)
        self.pads = self.layout.pads().to(self.device)
        self.fed = self.pads.repeat(capacity, 1)  # tokens that each slot is fed in the next decode step [R, S]
        self.emitted = self._zeros(capacity, streams + 1)  # tokens of the last step, and whether the answer has ended
        self.texts = self._zeros(capacity, _SMALLEST_TEXT)  # given text ids, each text followed by `eot`
        self.seen_text: Tensor | None = None  # ids emitted so far; a table only if a repetition penalty needs it
        self.seen_audio: Tensor | None = None
        self._constants()

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=self.device)

    def _constants(self) -> None:
        layout, pattern, device = self.layout, self.pattern, self.device
        self.periodic = pattern.num_steps(1)  # step from which on codebooks repeat every `stride` steps
        self.books = pattern.codebooks(self.periodic + pattern.stride).T.contiguous().to(device)  # [steps, A]
        self.first = torch.tensor(pattern.first, device=device)
        streams = range(len(pattern.first))
        self.leader = min(streams, key=pattern.first.__getitem__)
        self.last = max(streams, key=pattern.first.__getitem__)
        self.is_leader = torch.tensor([stream == self.leader for stream in streams], device=device)
        self.eoa = torch.tensor([ids.eoa for ids in layout.audio], device=device)
        self.begins = layout.code_offsets(self.books.T).T.contiguous()  # first id of each of these codebooks [steps, A]
        self.sizes = layout.sizes[1:]
        self.audio_ids = torch.arange(max(self.sizes), device=device)
        self.audio_streams = torch.arange(1, layout.num_streams, device=device)
        self.text_stream = torch.zeros(1, dtype=torch.long, device=device)

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """Addresses and shapes of the tables of a decode step; its CUDA graph is valid only while they are equal."""
        tables = (self.texts, self.seen_text, self.seen_audio)
        return tuple(() if table is None else (table.data_ptr(), *table.shape) for table in tables)

    def add(
        self,
        slot: int,
        task: Task,
        decoding: Decoding,
        *,
        seed: int,
        marks: Tensor,
        text_only: bool,
        given: Sequence[int] | None,
    ) -> None:
        """Begin an answer in a slot; it reads its own logits until `read_from` changes that.

        Args:
            slot: number of the slot.
            task: task of the request.
            decoding: sampling options and limits.
            seed: seed of the sampling noise.
            marks: last position of the prompt [S], which the slot is fed first.
            text_only: whether the slot is fed pads in the audio streams, whatever is emitted.
            given: text ids that are fed instead of sampled ones; None = text is sampled.
        """
        forced = NOT_YET if given is None else len(given) + 1
        row = {
            "min_steps": decoding.min_steps, "seed": seed, "text_from": slot, "audio_from": slot, "forced": forced,
            "speaks": task.speaks, "text_only": text_only, "constrain": decoding.constrain, "end_frame": NOT_YET,
        }  # fmt: skip
        self.integers[slot] = torch.tensor([int(row.get(name, 0)) for name in _COLUMNS])
        self.numbers[slot] = torch.tensor([sampling_numbers(decoding.text), sampling_numbers(decoding.audio)])
        self.audio_over[slot] = False
        self.fed[slot] = marks
        if given is not None:
            self._room_for_text(forced)
            self.texts[slot, :forced] = torch.tensor([*given, self.layout.text.eot])
        self._clear_seen(slot, decoding)

    def read_from(self, slot: int, *, text: int, audio: int) -> None:
        """Set the slots whose text and audio logits the answer in `slot` is sampled from."""
        self.integers[slot, _COLUMNS.index("text_from")] = text
        self.integers[slot, _COLUMNS.index("audio_from")] = audio

    def move(self, source: int, target: int) -> None:
        """Move the answer of one slot to another; if both are the same slot, the answer has ended."""
        tables = (self.integers, self.numbers, self.audio_over, self.fed, self.texts, self.seen_text, self.seen_audio)
        for table in tables:
            if table is not None:
                table[target] = table[source]
        # a recorded step also computes unused slots, which must not read logits beyond its rows
        self.read_from(source, text=source, audio=source)

    def embed(self, rows: int) -> Tensor:
        """Return the embeddings [rows, D] of the tokens that the first `rows` slots are fed next, see `Slots.step`."""
        return self.model.embed(self.fed[:rows, :, None])[:, 0]

    def choose(self, hidden: Hidden, variant: Variant) -> None:
        """Choose the next tokens from hidden states [R, D], and write them to `emitted` and `fed`."""
        rows = len(hidden.text)
        table = _SlotTable(self.integers[:rows])
        text = self._next_text(self._text_logits(hidden, table, variant), table, variant)
        if variant.speaks:
            audio = self._next_audio(self._audio_logits(hidden, table, variant), table, variant)
        else:
            audio = self.pads[1:].expand(rows, -1)
        self._end(table)
        self.emitted[:rows, 0] = text
        self.emitted[:rows, 1:-1] = audio
        self.emitted[:rows, -1] = table.finished
        self.fed[:rows, 0] = text
        self.fed[:rows, 1:] = torch.where(table.text_only[:, None] > 0, self.pads[1:], audio)
        table.step.add_(1)

    def _text_logits(self, hidden: Hidden, table: _SlotTable, variant: Variant) -> Tensor | None:
        if not variant.text:
            return None
        return self.engine.text_logits(hidden.text[table.text_from] if variant.shared else hidden.text)

    def _audio_logits(self, hidden: Hidden, table: _SlotTable, variant: Variant) -> Tensor:
        """Return the audio logits [R, A, V], padded with `-inf` for streams that have fewer ids than others."""
        logits = self.engine.audio_logits(hidden.audio[table.audio_from] if variant.shared else hidden.audio)
        if len(set(self.sizes)) == 1:
            return logits.float().unflatten(1, (len(self.sizes), -1))
        most = max(self.sizes)
        streams = logits.float().split(self.sizes, dim=1)
        return torch.stack([pad(each, (0, most - each.shape[1]), value=float("-inf")) for each in streams], dim=1)

    def _next_text(self, logits: Tensor | None, table: _SlotTable, variant: Variant) -> Tensor:
        """Return the next text ids [R] and update `text_over`."""
        token, eot, pad_id = self.pads[:1].expand(len(table.step)), self.layout.text.eot, self.pads[0]
        if logits is not None:
            scores = logits.float().clone() if variant.free else logits[:, : eot + 1].float().clone()
            scores[:, eot] -= table.not_yet
            if variant.free:
                scores[:, eot + 1 :].masked_fill_(table.constrain[:, None] > 0, float("-inf"))
            keys = noise_keys(table.seed, table.step, self.text_stream)[:, 0] if variant.text_draws else None
            seen = self.seen_text[: len(scores), : scores.shape[1]] if variant.text_penalises else None
            token = sample(scores, self.numbers[: len(scores), 0], keys=keys, seen=seen, cut=variant.text_cuts)
            token = torch.where(table.text_over > 0, pad_id, token)
        if variant.forced:
            at = table.step.clamp(max=self.texts.shape[1] - 1)
            given = self.texts[: len(at)].gather(1, at[:, None])[:, 0]
            given = torch.where(table.step < table.forced, given, pad_id)
            token = torch.where(table.forced > 0, given, token)
        if variant.text_penalises:
            self.seen_text[: len(token)].scatter_(1, token[:, None], True)
        table.text_over |= (token == eot) & (table.forced < 0) & table.ends_count
        return token

    def _next_audio(self, logits: Tensor, table: _SlotTable, variant: Variant) -> Tensor:
        """Return the next audio ids [R, A] and update `audio_over` and `end_frame`."""
        rows, over, constrain = len(logits), self.audio_over[: len(logits)], table.constrain[:, None] > 0
        phase = (table.step - self.periodic) % self.pattern.stride + self.periodic
        phase = torch.where(table.step < self.periodic, table.step, phase)
        books, begins = self.books[phase], self.begins[phase]
        boundary = (books >= 0) & (begins == 0)  # an `eoa` may stand only between frames
        frame = torch.div(table.step[:, None] - self.first, self.pattern.stride, rounding_mode="floor")
        scores = self._exclude(logits, table, begins, self.is_leader & boundary & (frame > 0), constrain)
        keys = noise_keys(table.seed, table.step, self.audio_streams) if variant.audio_draws else None
        seen = self.seen_audio[:rows] if variant.audio_penalises else None
        token = sample(scores, self.numbers[:rows, 1], keys=keys, seen=seen, cut=variant.audio_cuts)
        waiting = (books < 0) | over
        token = torch.where(constrain & waiting, self.pads[1:], token)
        ended = (token == self.eoa) & table.ends_count[:, None]
        begun = constrain[:, 0] & ended[:, self.leader] & (table.end_frame < 0)
        table.end_frame.copy_(torch.where(begun, frame[:, self.leader], table.end_frame))
        # the other streams end after the same frame as the leading one
        due = constrain & ~waiting & ~self.is_leader & boundary & (table.end_frame[:, None] == frame)
        token = torch.where(due, self.eoa, token)
        token = torch.where(table.speaks[:, None] > 0, token, self.pads[1:])
        if variant.audio_penalises:
            self.seen_audio[:rows].scatter_(2, token[..., None], True)
        over |= (ended | due) & (table.speaks[:, None] > 0)
        return token

    def _exclude(self, logits: Tensor, table: _SlotTable, begins: Tensor, may_end: Tensor, constrain: Tensor) -> Tensor:
        """Return the logits [R, A, V] of running audio streams with `-inf` for the ids that they may not emit.

        Args:
            begins: first id of the codebook that each stream carries [R, A].
            may_end: whether a constrained stream may emit `eoa` here [R, A].
        """
        ids, eoa = self.audio_ids, (self.audio_ids == self.eoa[:, None])
        codes = (ids >= begins[..., None]) & (ids < begins[..., None] + self.layout.codebook_size)
        allowed = codes | (eoa & may_end[..., None]) | ~constrain[..., None]
        allowed &= ~(eoa & (table.not_yet > 0)[:, None, None])
        return logits.masked_fill(~allowed, float("-inf"))

    def _end(self, table: _SlotTable) -> None:
        spoken = self.audio_over[: len(table.step), self.last]
        table.finished |= torch.where(table.speaks > 0, spoken, table.text_over > 0)

    def _room_for_text(self, length: int) -> None:
        if length > self.texts.shape[1]:
            self.texts = pad(self.texts, (0, (1 << (length - 1).bit_length()) - self.texts.shape[1]))

    def _clear_seen(self, slot: int, decoding: Decoding) -> None:
        if decoding.text.penalises and self.seen_text is None:
            self.seen_text = self._zeros(self.capacity, self.layout.sizes[0], dtype=torch.bool)
        if decoding.audio.penalises and self.seen_audio is None:
            self.seen_audio = self._zeros(self.capacity, len(self.sizes), max(self.sizes), dtype=torch.bool)
        for seen in (self.seen_text, self.seen_audio):
            if seen is not None:
                seen[slot] = False


class _SlotTable:
    """The columns of `Rules.integers` as attributes, each a view [R] with one number per slot."""

    step: Tensor
    """Number of decode steps of the answer so far."""
    min_steps: Tensor
    seed: Tensor
    text_from: Tensor
    """Slot whose text logits the answer is sampled from."""
    audio_from: Tensor
    text_over: Tensor
    """Whether the answer's text has emitted `eot`."""
    forced: Tensor
    """Number of ids of the given text, `eot` included; negative where the text is sampled."""
    finished: Tensor
    speaks: Tensor
    text_only: Tensor
    """Whether the slot is fed pads in the audio streams."""
    constrain: Tensor
    end_frame: Tensor
    """Number of frames that the leading audio stream had emitted when it ended; negative before its end."""

    def __init__(self, integers: Tensor):
        for name, column in zip(_COLUMNS, integers.unbind(1), strict=True):
            setattr(self, name, column)
        self.ends_count = (self.constrain > 0) | (self.step > 0)  # the published code ignores ends in the first step
        self.not_yet = torch.where(self.step < self.min_steps, float("inf"), 0.0)  # subtracted from logits of `eot`
