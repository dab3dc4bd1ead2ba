"""The running batch: requests join it when slots are free and leave it when their answers end, at any decode step.

    submit    any thread; waiting requests are admitted in their order
    turn      admit:   newcomers are encoded together, and their prompts prefilled in bounded chunks of positions
              step:    one decode step of all slots (token_rules.py)
              read:    emitted tokens -> text, codes, waveform
              release: slots of ended answers are free at the next step

Its caller steps it with `turn`, or the thread of a `Runner` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from omnikit.generate.prompts import EmbeddedPrompt, check_question, embed_prompt, encode
from omnikit.generate.request import Request
from omnikit.generate.sound_decoder import SoundDecoder, Sounds
from omnikit.generate.token_rules import Rules, Variant
from omnikit.generate.types import CANCELLED, END, STEP_LIMIT, BadQuestion
from omnikit.generate.waiting import QueueFull, WaitingRequests
from omnikit.interfaces import Engine, Prefill, Slots
from omnikit.model import OmniLM

Result = TypeVar("Result")
CAPACITY = 16
"""Default number of slots, the maximum number of sequences that are decoded together."""
MOST_WAITING = 1024
"""Default maximum number of requests that wait for slots."""
PREFILL_POSITIONS = 256
"""Maximum number of prompt positions that are computed between two decode steps of running answers."""
ENCODED_SECONDS = 30.0
"""Seconds of speech; once recordings of that length have been encoded, the next ones wait for a decode step."""


@dataclass
class _Newcomers:
    """Requests that are being prefilled, with their embedded prompts."""

    prompts: dict[Request, EmbeddedPrompt]
    prefill: Prefill

    @property
    def low_priority(self) -> bool:
        """Whether they are of low priority; such requests are not prefilled together with others."""
        return any(request.low_priority for request in self.prompts)


@dataclass
class _Read:
    """Tokens [R, S + 1] of one decode step on their way to the host, with the first slot of each request.

    `ready` is the CUDA event to wait for before they are read; None on a CPU.
    """

    owners: list[tuple[int, Request]]
    tokens: Tensor
    ready: torch.cuda.Event | None


class RunningBatch:
    """A batch of answers that are decoded together; each holds its slots from its admission to its end.

    Only `submit` and `busy` may be used from any thread; one thread uses all other methods.

    Args:
        model: model that answers.
        engine: engine that computes hidden states and logits.
        capacity: number of slots; a request takes one for each sequence of its decoding strategy.
        most_waiting: maximum number of requests that wait for slots.
        wait_seconds: maximum number of seconds for which a request waits; None = any time.
    """

    def __init__(
        self,
        model: OmniLM,
        engine: Engine,
        *,
        capacity: int = CAPACITY,
        most_waiting: int = MOST_WAITING,
        wait_seconds: float | None = None,
    ):
        self.model, self.engine, self.capacity = model, engine, capacity
        self.waiting = WaitingRequests(capacity, most_waiting, wait_seconds)
        self.newcomers: _Newcomers | None = None
        self.owners: list[Request] = []  # the request of each slot in use
        self._unread: _Read | None = None
        self._sound = SoundDecoder(model)
        self.slots: Slots | None = None
        """Slots of the engine; opened for the first request, None before and after an engine error."""
        self.rules: Rules | None = None

    def _open(self) -> Slots:
        if self.slots is None:
            self.slots = self.engine.open(self.capacity)
            self.rules = Rules(self.model, self.engine, self.capacity)
        return self.slots

    def _forget(self) -> list[Request]:
        """Drop all sequences and return the requests that they belong to, except for those still being prefilled."""
        running = self._running()
        self.slots = self.rules = self._unread = None
        self.owners = []
        for request in running:
            request.slots = []
        return running

    @property
    def busy(self) -> bool:
        """Whether any request is waiting, being prefilled or being decoded."""
        return bool(self.waiting or self.newcomers or self.owners)

    def submit(self, request: Request) -> None:
        """Append a request to the waiting ones; may be called from any thread.

        Raises:
            QueueFull: the maximum number of requests is waiting.
            ValueError: the request's strategy has more sequences than the batch has slots.
        """
        if request.rows > self.capacity:
            raise ValueError(f"strategy: {request.rows} sequences per question; the batch has {self.capacity} slots")
        self.waiting.append(request)

    @torch.inference_mode()
    def turn(self) -> bool:
        """Admit requests, decode one step, hand out its tokens and release slots; return whether requests are left."""
        try:
            with self._device():
                self._drop_waiting()
                self._admit()
                self._end_truncated(self._running())
                self._step()
        except Exception as error:  # an engine error ends the answers of this step only
            self._fail_running(error)
        return self.busy

    def _device(self) -> AbstractContextManager[Any]:
        """Return a context that makes the model's GPU the current device, on which torch creates streams and events."""
        device = self.model.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def run(self) -> None:
        """Call `turn` until no request is left."""
        while self.turn():
            pass

    def close(self, error: BaseException | None = None) -> None:
        """End all requests, waiting ones included, as cancelled or with the given error."""
        left = self.waiting.take_all()
        if self.newcomers is not None:
            left += [request for request in self.newcomers.prompts if not request.done]
            self.newcomers = None
        for request in [*left, *self._forget()]:
            self._leave(request)
            request.finish(CANCELLED if error is None else None, error)

    # admission

    def _running(self) -> list[Request]:
        return list(dict.fromkeys(self.owners))

    def _admit(self) -> None:
        if self.newcomers is not None and self.newcomers.low_priority and self.waiting.any_ready(self._free):
            group, self.newcomers = self.newcomers, None
            self.waiting.put_back(request for request in group.prompts if not request.done)
        if self.newcomers is None:
            self._begin(self._next_waiting())
        if self.newcomers is None:
            return
        group = self.newcomers
        for request in group.prompts:
            if not request.done and (end := request.truncated_by) is not None:
                request.finish(end)
        if all(request.done for request in group.prompts):
            self.newcomers = None
            return
        try:
            in_pieces = self.owners or group.low_priority
            group.prefill.advance(PREFILL_POSITIONS if in_pieces else group.prefill.left)
        except Exception as error:
            self.newcomers = None
            self._fail(group.prompts, error)
            return
        if not group.prefill.left:
            self.newcomers = None
            self._join(group)

    def _drop_waiting(self) -> None:
        """Finish waiting requests that were cancelled, and those that have waited for too long."""
        for request, end in self.waiting.take_ended():
            request.finish(end)
        for request in self.waiting.take_overdue():
            request.finish(None, QueueFull(f"no slot was free within {self.waiting.seconds:g} s"))

    @property
    def _free(self) -> int:
        return self.capacity - len(self.owners)

    def _next_waiting(self) -> list[Request]:
        """Remove and return the waiting requests that the free slots suffice for, or one of low priority."""
        found, free, seconds = [], self._free, 0.0
        while not (self.owners and found and seconds >= ENCODED_SECONDS):
            request = self.waiting.take(free)
            if request is None:
                break
            free -= request.rows
            seconds += _samples(request) / self.model.encoder.sample_rate
            found.append(request)
        if not found and (request := self.waiting.take_low(free)) is not None:
            found = [request]
        for request in found:
            request.begin()
        return found

    def _begin(self, requests: list[Request]) -> None:
        """Encode and embed the questions of some requests, and begin their prefill; a bad question fails alone."""
        for request in requests:
            self._attempt(request, self._check)
        features = self._encode([request for request in requests if not request.done and _needs_encoding(request)])
        prompts = {}
        for request in requests:
            if not request.done:
                prompt = self._attempt(request, lambda request: self._embed(request, features))
                prompts |= {} if prompt is None else {request: prompt}
        if not prompts:
            return
        try:
            self.newcomers = _Newcomers(prompts, self._prefill(list(prompts.values())))
        except Exception as error:
            self._fail(prompts, error)

    def _prefill(self, prompts: list[EmbeddedPrompt]) -> Prefill:
        embeddings, after = [prompt.embeddings for prompt in prompts], [prompt.after for prompt in prompts]
        continued = any(parked is not None for parked in after)  # an engine that cannot park takes no second argument
        return self._open().prefill(embeddings, after) if continued else self._open().prefill(embeddings)

    def _attempt(self, request: Request, call: Callable[[Request], Result]) -> Result | None:
        """Return `call(request)`; if that raises an exception, end the request with the error and return None."""
        try:
            return call(request)
        except Exception as error:
            request.finish(None, error)
            return None

    def _check(self, request: Request) -> None:
        """Raise an error if a request's question cannot be asked, or if it wants a waveform and there is no codec."""
        check_question(self.model, request)
        if request.sound is not None:
            self._sound.streams_of(request.sound)

    def _embed(self, request: Request, encoded: dict[Request, Tensor]) -> EmbeddedPrompt:
        """Embed a request's prompt from the features just encoded, if any, else from those of its question."""
        request.features = encoded.get(request, request.features)
        return embed_prompt(self.model, request, request.features if request.task.given == "speech" else None)

    def _encode(self, requests: list[Request]) -> dict[Request, Tensor]:
        """Encode the recordings of some requests; return the features [T, D] of each request.

        An encoder refuses a whole batch because of one recording, so after an error each recording is encoded alone.
        """
        if not requests:
            return {}
        try:
            features = encode(self.model, [request.question.wav for request in requests])
        except Exception as error:
            if len(requests) == 1:
                requests[0].finish(None, BadQuestion(str(error)) if isinstance(error, ValueError) else error)
                return {}
            return {key: found for request in requests for key, found in self._encode([request]).items()}
        # their views would keep the features of all requests in memory
        return dict(zip(requests, features if len(requests) == 1 else map(torch.clone, features), strict=True))

    def _join(self, group: _Newcomers) -> None:
        """Move prefilled sequences into slots of the running batch."""
        # registered before the engine is called: if it fails, these requests fail with the running ones
        for request in group.prompts:
            request.slots = [len(self.owners)]
            self.owners.append(request)
        self.slots.admit(group.prefill)
        for request, prompt in group.prompts.items():
            self._add_sequences(request, prompt)
        for request in group.prompts:
            if request.done:  # it ended during its prefill
                self._leave(request)

    def _add_sequences(self, request: Request, prompt: EmbeddedPrompt) -> None:
        """Give a request a slot for each sequence of its strategy, which share all prompt positions but the last."""
        for _ in prompt.marks[1:]:
            self.slots.copy(request.slots[0])
            request.slots.append(len(self.owners))
            self.owners.append(request)
        given = request.question.text if request.task.text_forced else None
        for slot, marks, quiet in zip(request.slots, prompt.marks, request.strategy.text_only, strict=True):
            self.rules.add(slot, request.task, request.decoding, seed=request.seed, marks=marks, text_only=quiet,
                           given=given)  # fmt: skip
        self._point(request)

    def _point(self, request: Request) -> None:
        """Update the slots that a request reads its text and audio logits from, after its slots have changed."""
        if len(request.slots) == 1:
            text = audio = request.slots[0]
        elif len(request.slots) < request.rows:  # called while its slots are being released
            return
        else:
            text, audio = request.slots[request.strategy.text_from], request.slots[request.strategy.audio_from]
        for slot in request.slots:
            self.rules.read_from(slot, text=text, audio=audio)

    # steps

    def _end_truncated(self, requests: Iterable[Request]) -> None:
        self._end([(request, end) for request in requests if (end := request.truncated_by) is not None])

    def _step(self) -> None:
        if self.owners:
            variant = self._variant()
            key = (variant, self.rules.places)
            with self._sound.step_seconds.measured():
                self.slots.step(self.rules.embed, lambda hidden: self.rules.choose(hidden, variant), key)
        former, self._unread = self._unread, self._send() if self.owners else None
        if former is not None:
            self._hand_out(former)
        if self._unread is not None and self._unread.ready is None:  # on a CPU the tokens can be read at once
            former, self._unread = self._unread, None
            self._hand_out(former)

    def _variant(self) -> Variant:
        running = self._running()
        writing, speaking = [r for r in running if not r.text_over], [r for r in running if r.task.speaks]
        texts, audios = [r.decoding.text for r in writing], [r.decoding.audio for r in speaking]
        return Variant(
            text=bool(writing), forced=any(r.task.text_forced for r in running), speaks=bool(speaking),
            shared=any(len(r.slots) > 1 for r in running), free=any(not r.decoding.constrain for r in running),
            text_draws=any(how.draws for how in texts), text_cuts=any(how.cuts for how in texts),
            text_penalises=any(how.penalises for how in texts), audio_draws=any(how.draws for how in audios),
            audio_cuts=any(how.cuts for how in audios), audio_penalises=any(how.penalises for how in audios),
        )  # fmt: skip

    def _send(self) -> _Read:
        """Begin to copy the tokens of this decode step to the host.

        On a GPU they are read one step later, so that the GPU computes while the host works on them.
        """
        owners = [(request.slots[0], request) for request in self._running()]
        tokens = self.rules.emitted[: len(self.owners)]
        if not tokens.is_cuda:
            return _Read(owners, tokens, None)
        host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        host.copy_(tokens, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(tokens.device))
        return _Read(owners, host, ready)

    def _hand_out(self, read: _Read) -> None:
        """Append the tokens of a decode step to their answers, and queue chunks with the sound decoded by now."""
        if read.ready is not None:
            read.ready.synchronize()
        rows, ended = read.tokens.tolist(), []
        for slot, request in read.owners:
            if request.done:  # truncated after this step had begun
                continue
            *tokens, finished = rows[slot]
            if finished:
                request.closing = tokens
                ended.append((request, END))
                continue
            request.emit(tokens)
            if request.text_over and len(request.slots) > 1:
                self._keep_speaking(request)
            if len(request.steps) >= request.max_steps:
                ended.append((request, STEP_LIMIT))
        sounds = self._decoded(self._sound.decode_due, [request for _, request in read.owners if not request.done])
        for _, request in read.owners:
            if not request.done:
                request.report(sounds.get(request))
        self._end(ended)

    def _decoded(self, decode: Callable[[list[Request]], Sounds], requests: list[Request]) -> dict[Request, Tensor]:
        """Decode codes to waveforms [n] of requests, and end the requests for which the codec raised an error."""
        sounds = decode(requests)
        for request, error in sounds.failed.items():
            self._fail([request], error)
        return sounds.wavs

    def _keep_speaking(self, request: Request) -> None:
        """Release the slots of text-only sequences once the text of the answer has ended."""
        speaking = request.slots[request.strategy.audio_from]
        while len(request.slots) > 1:
            dropped, last = next(slot for slot in request.slots if slot != speaking), len(self.owners) - 1
            self._release(dropped)
            speaking = dropped if speaking == last else speaking
        self._point(request)

    # the end

    def _end(self, ended: list[tuple[Request, str]]) -> None:
        sounds = self._decoded(self._sound.finish, [request for request, _ in ended])
        for request, end in ended:
            if not request.done:
                try:
                    self._park(request, end)
                except Exception as error:  # of one conversation; the other answers go on
                    self._fail([request], error)
                    continue
                self._leave(request)
                request.report(sounds.get(request))
                request.finish(end)

    def _park(self, request: Request, end: str) -> None:
        """Park the sequence that speaks if the answer belongs to a conversation, and append the turn to its history.

        An answer that was truncated before its first step is not remembered.
        """
        if request.history is None or (end != END and not request.steps):
            return
        speaking = request.slots[request.strategy.audio_from if len(request.slots) > 1 else 0]
        parked = self.slots.park(speaking)
        self._forget_slot(speaking)
        request.history.complete(request.turn, request.steps, end, request.closing, parked)

    def _leave(self, request: Request) -> None:
        """Release the slots and the decode stream of a request."""
        while request.slots:
            self._release(request.slots[-1])
        self._sound.drop(request)

    def _release(self, slot: int) -> None:
        """Release a slot; the sequence of the last slot moves to it."""
        self.slots.release(slot)
        self._forget_slot(slot)

    def _forget_slot(self, slot: int) -> None:
        """Remove a slot that the engine has released; the sequence of the last slot has moved to it."""
        last = len(self.owners) - 1
        self.rules.move(last, slot)
        owner, moved = self.owners[slot], self.owners[last]
        owner.slots.remove(slot)
        self.owners[slot] = moved
        self.owners.pop()
        if last != slot:
            moved.slots[moved.slots.index(last)] = slot
            self._point(moved)

    def _fail(self, requests: Iterable[Request], error: BaseException) -> None:
        for request in requests:
            if not request.done:
                self._leave(request)
                request.finish(None, error)

    def _fail_running(self, error: BaseException) -> None:
        """End all running answers with an error, open new slots, and queue the prefilling requests again.

        After an error the engine's KV cache cannot be trusted.
        """
        running = self._forget()
        if self.newcomers is not None:
            group, self.newcomers = self.newcomers, None
            self.waiting.put_back(request for request in group.prompts if not request.done)
        self._fail(running, error)


def _needs_encoding(request: Request) -> bool:
    """Return whether a request's question is a recording without ready features."""
    return request.features is None and request.question.wav is not None


def _samples(request: Request) -> int:
    """Return the number of samples to encode for a request; 0 if its question is no waveform [N]."""
    wav = request.question.wav
    return wav.shape[0] if isinstance(wav, Tensor) and wav.dim() == 1 else 0
