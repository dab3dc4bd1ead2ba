"""One generation loop for every task, pattern and strategy.

Letters: B questions, R rows per question (see `omnikit.strategies`), S streams, L steps, V vocabulary, K codebooks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from time import monotonic

import torch
from torch import Tensor

from omnikit.model import Engine, Hidden, OmniLM, Speech
from omnikit.ranges import COUNT, FROM_ZERO, Range
from omnikit.sampling import Sampling, sample
from omnikit.strategies import PARALLEL, Strategy
from omnikit.tasks import AUDIO_START, Prompt, Task, make_prompt
from omnikit.tokens import TokenLayout

END, STEP_LIMIT, TIME_LIMIT, CANCELLED = ENDS = ("end", "step limit", "time limit", "cancelled")
"""Why an answer ended: of itself, or what cut it."""

_LIMITS = {"max_steps": COUNT, "min_steps": FROM_ZERO, "time_limit": Range(0, above=True, null=True)}
"""Numbers that the options of `Decoding` take."""


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    Args:
        text, audio: sampling of the two kinds of streams.
        constrain: pads are forced where an audio stream waits or has ended, ids outside the codebook are cut, and all
            audio streams end with the frame after which the first one ends. False = as the published code does: every
            stream is sampled freely, and the first step is not checked for an end.
        max_steps: an answer is cut after so many steps.
        min_steps: no stream ends before so many.
        time_limit: an answer is cut after so many seconds, those of the prompt included; None = never. What a batch
            decodes is cut together.

    Raises:
        ValueError: a limit that leaves no step, or a number that is none.
    """

    text: Sampling = field(default_factory=Sampling)
    audio: Sampling = field(default_factory=Sampling)
    constrain: bool = True
    max_steps: int = 1024
    min_steps: int = 0
    time_limit: float | None = None

    def __post_init__(self) -> None:
        for name, allowed in _LIMITS.items():
            if problem := allowed.problem(value := getattr(self, name)):
                raise ValueError(f"{name}: {value}; it {problem}")


@dataclass(frozen=True)
class Question:
    """What is asked: text ids, or encoder features [T, D] (before the adapter)."""

    text: list[int] | None = None
    features: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """One step of all questions."""

    tokens: Tensor  # [B, S]
    emitted: Tensor  # [B] bool, False where the answer has ended


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: list[int]
    """Text ids without `eot`."""
    codes: Tensor
    """Codes [K, T]; T = 0 where the task does not speak."""
    end: str
    """One of `ENDS`."""

    @property
    def truncated(self) -> bool:
        """Whether it was cut."""
        return self.end != END


class Generation:
    """An iterator of the steps of some answers, each decoded when it is asked for, by any thread.

    Args:
        cancel: where it is set, from whatever thread, no further step begins.

    The others are those of `generate`. When there are no more steps, `ends` tells for each question which of `ENDS` it
    was; before, it is None.
    """

    def __init__(
        self,
        model: OmniLM,
        task: Task,
        questions: list[Question],
        *,
        decoding: Decoding,
        strategy: Strategy,
        generator: torch.Generator | None,
        engine: Engine,
        cancel: Event | None,
    ):
        self.decoding, self.engine, self.cancel = decoding, engine, cancel
        self.ends: list[str] | None = None
        self._rules = AnswerRules(model, task, questions, decoding, generator)
        self._new_rows = lambda: _Rows(model, engine, task, questions, strategy.for_task(task))
        self._rows: _Rows | None = None
        self._began = 0.0

    def __iter__(self) -> Generation:
        return self

    # for this step alone: between two of them the caller computes as it likes, perhaps in another thread
    @torch.inference_mode()
    def __next__(self) -> Step:
        if self.ends is not None:
            raise StopIteration
        if self._rows is None:
            self._began = monotonic()
        if (reason := self._cut()) is not None:
            self._end(reason)
            raise StopIteration
        hidden = self._advance()
        step = len(self._rules.emitted)
        tokens = self._rules.next(self.engine, hidden, step)
        if self._rules.all_finished:
            self._end(END)
            raise StopIteration
        return Step(tokens, ~self._rules.finished)

    def close(self) -> None:
        """No further steps; nothing that was computed is kept."""
        if self.ends is None:
            self._end(CANCELLED)

    def _advance(self) -> tuple[Tensor, Tensor]:
        """The prompts or the last tokens through the model."""
        if self._rows is None:
            self._rows = self._new_rows()
            return self._rows.prefill()
        return self._rows.feed(self._rules.emitted[-1], text_over=self._rules.text_over)

    def _cut(self) -> str | None:
        if self.cancel is not None and self.cancel.is_set():
            return CANCELLED
        if len(self._rules.emitted) == self.decoding.max_steps:
            return STEP_LIMIT
        limit = self.decoding.time_limit
        return TIME_LIMIT if limit is not None and monotonic() - self._began >= limit else None

    def _end(self, reason: str) -> None:
        self.ends = [END if finished else reason for finished in self._rules.finished.tolist()]
        self._rows = None


def generate(
    model: OmniLM,
    task: Task,
    questions: list[Question],
    *,
    decoding: Decoding | None = None,
    strategy: Strategy = PARALLEL,
    generator: torch.Generator | None = None,
    engine: Engine | None = None,
    cancel: Event | None = None,
) -> Generation:
    """Decode answers step by step until all have ended; drop the iterator or set `cancel` to stop before.

    Args:
        engine: what computes the steps; None = the model.
        cancel: see `Generation`.
    """
    decoding, engine = decoding or Decoding(), engine or model
    options = {"decoding": decoding, "strategy": strategy, "generator": generator, "engine": engine, "cancel": cancel}
    return Generation(model, task, questions, **options)


def answers(
    model: OmniLM,
    task: Task,
    questions: list[Question],
    *,
    decoding: Decoding | None = None,
    strategy: Strategy = PARALLEL,
    generator: torch.Generator | None = None,
    engine: Engine | None = None,
    cancel: Event | None = None,
) -> list[Answer]:
    """Decode whole answers of a batch of questions."""
    options = {"decoding": decoding, "strategy": strategy, "generator": generator, "engine": engine, "cancel": cancel}
    generation = generate(model, task, questions, **options)
    steps = list(generation)
    if not steps:
        empty = torch.zeros(model.pattern.num_codebooks, 0, dtype=torch.long)
        return [Answer([], empty, end) for end in generation.ends]
    tokens = torch.stack([step.tokens for step in steps], dim=-1)
    counts = torch.stack([step.emitted for step in steps]).sum(dim=0).tolist()
    return [
        _read_answer(model, task, tokens[b, :, :count], end)
        for b, (count, end) in enumerate(zip(counts, generation.ends, strict=True))
    ]


def _read_answer(model: OmniLM, task: Task, steps: Tensor, end: str) -> Answer:
    """Emitted steps [S, L] -> text ids and the codes of the complete frames."""
    text = [i for i in steps[0].tolist() if i < model.layout.text_vocab]
    return Answer(text, read_frames(model, steps[1:]).codes if task.speaks else steps.new_zeros(0, 0), end)


@dataclass(frozen=True)
class Frames:
    """What can be heard of some steps."""

    codes: Tensor  # [K, T]
    ended: bool  # whether nothing behind these can be heard


def read_frames(model: OmniLM, steps: Tensor) -> Frames:
    """Audio rows of emitted steps [S - 1, L] -> the complete frames that can be heard.

    The sound ends before the first frame in which a stream has an `eoa`. A frame with another id that is no code of its
    codebook is left out. (Only where `Decoding.constrain` is off does the network have a choice of such ids.)
    """
    layout, pattern = model.layout, model.pattern
    ends = torch.tensor([[ids.eoa] for ids in layout.audio], device=steps.device)
    over = pattern.deinterleave((steps == ends)[None])[0].any(dim=0).cumsum(dim=0) > 0
    codes = layout.to_codes(steps, pattern.codebooks(steps.shape[-1]).to(steps.device))
    codes = pattern.deinterleave(codes[None])[0]
    known = ((codes >= 0) & (codes < layout.codebook_size)).all(dim=0)
    return Frames(codes[:, known & ~over], bool(over.any()))


class _Rows:
    """The rows of a batch on their way through the model: B questions times R rows."""

    def __init__(self, model: OmniLM, engine: Engine, task: Task, questions: list[Question], strategy: Strategy):
        self.model, self.engine, self.strategy = model, engine, strategy
        self.row_tasks = strategy.row_tasks(task)
        self.features, lengths = _listen(model, questions) if task.given == "speech" else (None, None)
        prompts = [
            make_prompt(task, model.layout, text=q.text, audio_frames=None if lengths is None else int(lengths[b]))
            for b, q in enumerate(questions)
        ]
        self.steps, self.mask, self.starts = _pad_left(prompts, model.layout)
        self.lengths = lengths
        self.pads = model.layout.pads().to(model.device)
        self.cache = engine.new_cache()

    def prefill(self) -> tuple[Tensor, Tensor]:
        """The prompts. All rows of a question share all but the last position, so that is computed once."""
        device, rows = self.model.device, len(self.strategy.text_only)
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0).to(device)
        self.mask, steps = self.mask.to(device), self.steps.to(device)
        speech = None
        if self.features is not None:
            speech = Speech(self.features, self.lengths.to(device), self.starts.to(device) + AUDIO_START)
        shared = slice(None) if rows == 1 else slice(-1)
        hidden = self.engine(
            steps[..., shared], speech, positions=positions[:, shared], mask=self.mask[:, shared], cache=self.cache
        )
        self.position = positions[:, -1:]
        if rows == 1:
            return self._choose(hidden)
        self._select(torch.arange(len(steps), device=device).repeat_interleave(rows))
        marks = [self.model.layout.marks(text=t.text_mark, audio=t.speaks) for t in self.row_tasks]
        return self._run(torch.stack(marks).repeat(len(steps), 1).to(device))

    def feed(self, tokens: Tensor, *, text_over: bool) -> tuple[Tensor, Tensor]:
        """The emitted tokens [B, S] of the last step; `text_over`: no more text is read from any row."""
        if text_over:
            self._keep_one_row()
        fed = tokens[:, None].repeat(1, len(self.strategy.text_only), 1)
        for row, quiet in enumerate(self.strategy.text_only):
            if quiet:
                fed[:, row, 1:] = self.pads[1:]
        self.mask = torch.cat([self.mask, self.mask.new_ones(self.mask.shape[0], 1)], dim=1)
        self.position = self.position + 1
        return self._run(fed.flatten(0, 1))

    def _keep_one_row(self) -> None:
        """Go on with the row that speaks alone."""
        rows = len(self.strategy.text_only)
        if rows > 1:
            self._select(torch.arange(self.strategy.audio_from, len(self.mask), rows, device=self.mask.device))
            self.strategy = PARALLEL

    def _select(self, rows: Tensor) -> None:
        self.cache.select(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]

    def _run(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """One step [B * R, S] -> as `_choose`."""
        return self._choose(self.engine(step[..., None], positions=self.position, mask=self.mask, cache=self.cache))

    def _choose(self, hidden: Hidden) -> tuple[Tensor, Tensor]:
        """What the text and the audio heads are to read, of the last position, each [B, D]."""
        rows = len(self.strategy.text_only)
        text = hidden.text[:, -1].unflatten(0, (-1, rows))[:, self.strategy.text_from]
        return text, hidden.audio[:, -1].unflatten(0, (-1, rows))[:, self.strategy.audio_from]


class AnswerRules:
    """Which token each stream emits, and when an answer ends.

    Text: `eot` is emitted once, then pads. Text-only answers end at `eot` and do not emit it. Spoken answers end when
    the last audio stream emits `eoa`; that whole step is dropped.
    """

    def __init__(
        self,
        model: OmniLM,
        task: Task,
        questions: list[Question],
        decoding: Decoding,
        generator: torch.Generator | None = None,
    ):
        self.model, self.task, self.decoding, self.generator = model, task, decoding, generator
        self.layout: TokenLayout = model.layout
        batch, device = len(questions), model.device
        self.finished = torch.zeros(batch, dtype=torch.bool, device=device)
        self.text_done = torch.zeros(batch, dtype=torch.bool, device=device)
        self.audio_done = torch.zeros(batch, self.layout.num_streams - 1, dtype=torch.bool, device=device)
        self.frames = torch.full((batch,), -1, device=device)  # at which frame the leading stream ended
        self.leader = min(range(len(model.pattern.first)), key=model.pattern.first.__getitem__)
        self.pads = self.layout.pads().to(device)
        self.forced = _forced_text(self.layout, questions).to(device) if task.text_forced else None
        self.text_over = task.text_forced  # whether no more text is sampled
        self.all_finished = False
        self.emitted: list[Tensor] = []

    def next(self, heads: Engine, hidden: tuple[Tensor, Tensor], step: int) -> Tensor:
        """Hidden states of the text and the audio heads [B, D] each -> tokens [B, S]; updates `finished`."""
        text = self._next_text(lambda: heads.text_logits(hidden[0]), step)
        tokens = [text]
        if self.task.speaks:
            logits = heads.audio_logits(hidden[1])
            order = sorted(range(len(logits)), key=lambda s: s != self.leader)
            chosen = {s: self._next_audio(logits[s], s, step) for s in order}
            tokens += [chosen[s] for s in range(len(logits))]
        else:
            tokens += [self.pads[s].expand_as(text) for s in range(1, self.layout.num_streams)]
        self._check_end()
        self.emitted.append(torch.stack(tokens, dim=1))
        return self.emitted[-1]

    def _sample(self, logits: Tensor, stream: int, how: Sampling) -> Tensor:
        previous = None
        if how.repetition_penalty != 1.0 and self.emitted:
            previous = torch.stack([tokens[:, stream] for tokens in self.emitted], dim=1)
        return sample(logits, how, previous=previous, generator=self.generator)

    def _next_text(self, logits: Callable[[], Tensor], step: int) -> Tensor:
        pad = self.pads[0].expand_as(self.text_done.long())
        if self.forced is not None:
            return self.forced[:, step] if step < self.forced.shape[1] else pad
        if self.text_over:
            return pad
        scores = self._not_yet(logits().float(), self.layout.text.eot, step)
        if self.decoding.constrain:
            allowed = torch.arange(scores.shape[-1], device=scores.device) <= self.layout.text.eot
            scores = scores.masked_fill(~allowed, float("-inf"))
        token = torch.where(self.text_done, pad, self._sample(scores, 0, self.decoding.text))
        self.text_done |= (token == self.layout.text.eot) & self._counts(step)
        return token

    def _next_audio(self, logits: Tensor, stream: int, step: int) -> Tensor:
        ids, logits = self.layout.audio[stream], logits.float()
        logits = self._not_yet(logits, ids.eoa, step)
        if self.decoding.constrain:
            logits = self._constrain(logits, stream, step)
        token = self._sample(logits, 1 + stream, self.decoding.audio)
        ended = (token == ids.eoa) & self._counts(step)
        if self.decoding.constrain and stream == self.leader:
            new = ended & (self.frames < 0)
            self.frames = torch.where(new, self._frame(stream, step), self.frames)
        self.audio_done[:, stream] |= ended
        return token

    def _not_yet(self, logits: Tensor, end: int, step: int) -> Tensor:
        """Logits [B, V] without an end mark while answers may not end."""
        if step >= self.decoding.min_steps:
            return logits
        logits = logits.clone()
        logits[:, end] = float("-inf")
        return logits

    def _frame(self, stream: int, step: int) -> int:
        return (step - self.model.pattern.first[stream]) // self.model.pattern.stride

    def _constrain(self, logits: Tensor, stream: int, step: int) -> Tensor:
        """Logits [B, V_s] with everything forbidden but what may stand here."""
        ids, pattern = self.layout.audio[stream], self.model.pattern
        allowed = torch.zeros_like(logits, dtype=torch.bool)
        book = pattern.codebook_at(step)[stream]
        waiting = torch.full_like(self.finished, book < 0) | self.audio_done[:, stream]
        if book >= 0:
            begin = self.layout.carries[stream].index(book) * self.layout.codebook_size
            allowed[:, begin : begin + self.layout.codebook_size] = True
            self._allow_end(allowed, stream, step, boundary=begin == 0)
        _allow_alone(allowed, ids.pad, waiting)
        return logits.masked_fill(~allowed, float("-inf"))

    def _allow_end(self, allowed: Tensor, stream: int, step: int, *, boundary: bool) -> None:
        """The leading stream may end at any frame but the first; the others end where it did."""
        eoa = self.layout.audio[stream].eoa
        if stream == self.leader:
            allowed[:, eoa] = boundary and self._frame(stream, step) > 0
            return
        due = (self.frames == self._frame(stream, step)) & boundary
        _allow_alone(allowed, eoa, due)

    def _counts(self, step: int) -> bool:
        """Whether an end mark at this step counts: the published code does not look at the first one."""
        return self.decoding.constrain or step > 0

    def _check_end(self) -> None:
        last = max(range(self.audio_done.shape[1]), key=self.model.pattern.first.__getitem__)
        self.finished |= self.audio_done[:, last] if self.task.speaks else self.text_done
        # a device is asked once a step
        text_over, self.all_finished = torch.stack([self.text_done.all(), self.finished.all()]).tolist()
        self.text_over = self.text_over or text_over


def _allow_alone(allowed: Tensor, token: int, rows: Tensor) -> None:
    """In some rows [B] of what may stand [B, V], one id and no other. A mask as an index would make a GPU wait."""
    allowed &= ~rows[:, None]
    allowed[:, token] |= rows


def _listen(model: OmniLM, questions: list[Question]) -> tuple[Tensor, Tensor]:
    features = [q.features for q in questions]
    lengths = torch.tensor([f.shape[0] for f in features])
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True).to(model.device)
    with torch.inference_mode():
        adapted, lengths = model.adapter(padded.to(model.dtype), lengths.to(model.device))
    return adapted, lengths.cpu()


def _forced_text(layout: TokenLayout, questions: list[Question]) -> Tensor:
    """The given texts, their `eot` and pads [B, L]."""
    rows = [torch.tensor([*q.text, layout.text.eot]) for q in questions]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=layout.text.pad)


def _pad_left(prompts: list[Prompt], layout: TokenLayout) -> tuple[Tensor, Tensor, Tensor]:
    """Steps [B, S, L], mask [B, L] and the position at which each prompt begins [B]."""
    longest = max(p.steps.shape[1] for p in prompts)
    starts = torch.tensor([longest - p.steps.shape[1] for p in prompts])
    steps = layout.pads()[None, :, None].repeat(len(prompts), 1, longest)
    for b, prompt in enumerate(prompts):
        steps[b, :, starts[b] :] = prompt.steps
    mask = (torch.arange(longest)[None] >= starts[:, None]).long()
    return steps, mask, starts
