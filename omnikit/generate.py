"""One generation loop for every task, pattern and strategy.

Letters: B questions, R rows per question (see `omnikit.strategies`), S streams, L steps, V vocabulary, K codebooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from omnikit.model import Engine, OmniLM, Speech
from omnikit.sampling import Sampling, sample
from omnikit.strategies import PARALLEL, Strategy
from omnikit.tasks import AUDIO_START, Prompt, Task, make_prompt
from omnikit.tokens import TokenLayout


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    Args:
        text, audio: sampling of the two kinds of streams.
        constrain: pads are forced where an audio stream waits or has ended, ids outside the codebook are cut, and all
            audio streams end with the frame after which the first one ends. False = as the published code does: every
            stream is sampled freely, and the first step is not checked for an end.
        max_steps: an answer is cut after so many steps.
    """

    text: Sampling = field(default_factory=Sampling)
    audio: Sampling = field(default_factory=Sampling)
    constrain: bool = True
    max_steps: int = 1024


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
    truncated: bool
    """Whether `max_steps` cut it."""


def generate(
    model: OmniLM,
    task: Task,
    questions: list[Question],
    *,
    decoding: Decoding | None = None,
    strategy: Strategy = PARALLEL,
    generator: torch.Generator | None = None,
    engine: Engine | None = None,
) -> Iterator[Step]:
    """Decode answers step by step until all have ended; drop the iterator to cancel.

    Args:
        engine: what computes the steps; None = the model.
    """
    decoding, engine = decoding or Decoding(), engine or model
    strategy = strategy.for_task(task)
    rules = AnswerRules(model, task, questions, decoding, generator)
    with torch.inference_mode():
        rows = _Rows(model, engine, task, questions, strategy)
        hidden = rows.prefill()
        for step in range(decoding.max_steps):
            tokens = rules.next(engine, hidden, step)
            if rules.finished.all():
                return
            yield Step(tokens, ~rules.finished)
            hidden = rows.feed(tokens)


def answers(
    model: OmniLM,
    task: Task,
    questions: list[Question],
    *,
    decoding: Decoding | None = None,
    strategy: Strategy = PARALLEL,
    generator: torch.Generator | None = None,
    engine: Engine | None = None,
) -> list[Answer]:
    """Decode whole answers of a batch of questions."""
    decoding = decoding or Decoding()
    options = {"decoding": decoding, "strategy": strategy, "generator": generator, "engine": engine}
    steps = list(generate(model, task, questions, **options))
    if not steps:
        empty = torch.zeros(model.pattern.num_codebooks, 0, dtype=torch.long)
        return [Answer([], empty, False) for _ in questions]
    tokens = torch.stack([step.tokens for step in steps], dim=-1)
    counts = torch.stack([step.emitted for step in steps]).sum(dim=0).tolist()
    return [
        read_answer(model, task, tokens[b, :, :count], truncated=count == decoding.max_steps)
        for b, count in enumerate(counts)
    ]


def read_answer(model: OmniLM, task: Task, steps: Tensor, *, truncated: bool = False) -> Answer:
    """Emitted steps [S, L] -> text ids and the codes of the complete frames."""
    layout = model.layout
    text = [i for i in steps[0].tolist() if i < layout.text_vocab]
    return Answer(text, read_codes(model, steps[1:]) if task.speaks else steps.new_zeros(0, 0), truncated)


def read_codes(model: OmniLM, steps: Tensor) -> Tensor:
    """Audio rows of emitted steps [S - 1, L] -> codes of the complete frames before any end mark [K, T]."""
    codes = model.layout.to_codes(steps, model.pattern.codebooks(steps.shape[-1]).to(steps.device))
    frames = model.pattern.deinterleave(codes[None])[0]
    outside = ((frames < 0) | (frames >= model.layout.codebook_size)).any(dim=0)
    return frames[:, : int(outside.int().argmax())] if outside.any() else frames


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
        self.cache = engine.new_cache()

    def prefill(self) -> tuple[Tensor, Tensor]:
        """The prompts. All rows of a question share all but the last position, so that is computed once."""
        device = self.model.device
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0).to(device)
        self.mask = self.mask.to(device)
        speech = None
        if self.features is not None:
            speech = Speech(self.features, self.lengths.to(device), self.starts.to(device) + AUDIO_START)
        steps = self.steps.to(device)
        self.engine(steps[..., :-1], speech, positions=positions[:, :-1], mask=self.mask[:, :-1], cache=self.cache)
        rows = len(self.row_tasks)
        if rows > 1:
            self.cache.repeat(rows)
        self.mask = self.mask.repeat_interleave(rows, dim=0)
        self.position = positions[:, -1:].repeat_interleave(rows, dim=0)
        marks = [self.model.layout.marks(text=t.text_mark, audio=t.speaks) for t in self.row_tasks]
        return self._run(torch.stack(marks).repeat(len(steps), 1).to(device))

    def feed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The emitted tokens [B, S] of the last step."""
        fed = tokens[:, None].repeat(1, len(self.row_tasks), 1)
        pads = self.model.layout.pads().to(tokens.device)
        for row, quiet in enumerate(self.strategy.text_only):
            if quiet:
                fed[:, row, 1:] = pads[1:]
        self.mask = torch.cat([self.mask, self.mask.new_ones(self.mask.shape[0], 1)], dim=1)
        self.position = self.position + 1
        return self._run(fed.flatten(0, 1))

    def _run(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """One step [B * R, S] -> hidden states for the text and the audio heads, each [B, D]."""
        hidden = self.engine(step[..., None], positions=self.position, mask=self.mask, cache=self.cache)
        rows = len(self.row_tasks)
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
        self._check_end(step)
        self.emitted.append(torch.stack(tokens, dim=1))
        return self.emitted[-1]

    def _previous(self, stream: int) -> Tensor | None:
        return torch.stack([tokens[:, stream] for tokens in self.emitted], dim=1) if self.emitted else None

    def _next_text(self, logits, step: int) -> Tensor:
        pad = self.pads[0].expand_as(self.text_done.long())
        if self.forced is not None:
            return self.forced[:, step] if step < self.forced.shape[1] else pad
        if bool(self.text_done.all()):
            return pad
        logits = logits().float()
        if self.decoding.constrain:
            allowed = torch.arange(logits.shape[-1], device=logits.device) <= self.layout.text.eot
            logits = logits.masked_fill(~allowed, float("-inf"))
        token = sample(logits, self.decoding.text, previous=self._previous(0), generator=self.generator)
        token = torch.where(self.text_done, pad, token)
        self.text_done |= (token == self.layout.text.eot) & self._counts(step)
        return token

    def _next_audio(self, logits: Tensor, stream: int, step: int) -> Tensor:
        ids, logits = self.layout.audio[stream], logits.float()
        if self.decoding.constrain:
            logits = self._constrain(logits, stream, step)
        token = sample(logits, self.decoding.audio, previous=self._previous(1 + stream), generator=self.generator)
        ended = (token == ids.eoa) & self._counts(step)
        if self.decoding.constrain and stream == self.leader:
            new = ended & (self.frames < 0)
            self.frames = torch.where(new, self._frame(stream, step), self.frames)
        self.audio_done[:, stream] |= ended
        return token

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
        allowed[waiting] = False
        allowed[waiting, ids.pad] = True
        return logits.masked_fill(~allowed, float("-inf"))

    def _allow_end(self, allowed: Tensor, stream: int, step: int, *, boundary: bool) -> None:
        """The leading stream may end at any frame but the first; the others end where it did."""
        eoa = self.layout.audio[stream].eoa
        if stream == self.leader:
            allowed[:, eoa] = boundary and self._frame(stream, step) > 0
            return
        due = (self.frames == self._frame(stream, step)) & boundary
        allowed[due] = False
        allowed[due, eoa] = True

    def _counts(self, step: int) -> bool:
        """Whether an end mark at this step counts: the published code does not look at the first one."""
        return self.decoding.constrain or step > 0

    def _check_end(self, step: int) -> None:
        last = max(range(self.audio_done.shape[1]), key=self.model.pattern.first.__getitem__)
        self.finished |= self.audio_done[:, last] if self.task.speaks else self.text_done


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
