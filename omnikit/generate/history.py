"""The history of a conversation: its turns as steps of one sequence, and the parked KV cache of that sequence.

A conversation is one sequence (`omnikit.turns`). Its parked KV cache holds the first positions; the positions after
them are computed together with the next prompt. Usually that is the closing step of the last answer alone. After a turn
was cut, removed or dropped it is everything from there on.

Threads that ask edit turns at any time; only the thread that steps the running batch touches the parked KV cache. An
edit therefore notes from which position on the sequence has changed, and the KV cache is cropped to the positions
before when the next turn begins.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omnikit.generate.detokenize import read_answer
from omnikit.generate.types import END
from omnikit.interfaces import Parked
from omnikit.model import AdaptedSpeech, OmniLM
from omnikit.tasks import TASKS, Task, make_sample, prompt_length
from omnikit.turns import heard_part

if TYPE_CHECKING:
    from omnikit.generate.request import Request

_ALL = sys.maxsize  # number of unchanged positions of a sequence that was not edited


class UnknownTurn(KeyError):
    """Error raised for the key of a turn that a conversation does not have, or not any more."""

    def __str__(self) -> str:
        return self.args[0]  # KeyError would put it in quotes


@dataclass(eq=False)
class Turn:
    """One question and its answer in a conversation."""

    task: Task
    key: str | None = None
    """Name by which users refer to the turn; None = it has none."""
    question: str | None = None
    """Text of a written question; None for a spoken one."""
    prompt: Tensor | None = None
    """Steps of the prompt [S, L]; None until the turn begins."""
    speech: AdaptedSpeech | None = None
    """Adapted features of a spoken question, which stand in the prompt."""
    answer: Tensor | None = None
    """Steps of the answer [S, A], its closing step included; None until the answer has ended."""
    text: Sequence[int] = field(default_factory=list)
    """Text ids of the answer, without `eot`."""
    codes: Tensor | None = None
    """Codes [K, T] of the answer's audible frames; T = 0 where it is text only, None until the answer has ended."""
    request: Request | None = None
    """Request that computes the turn; None before it was submitted and after it has ended."""

    @property
    def whole(self) -> bool:
        """Whether the answer has ended, so that the turn is remembered."""
        return self.answer is not None

    @property
    def length(self) -> int:
        """Number of positions of prompt and answer; 0 until the answer has ended."""
        return self.prompt.shape[1] + self.answer.shape[1] if self.whole else 0


@dataclass(frozen=True)
class Before:
    """The part of a conversation's sequence that precedes the prompt of a turn."""

    embeddings: list[Tensor]
    """Embeddings [L_i, D] of the positions that are to be computed, those that `parked` does not hold."""
    parked: Parked | None
    """KV cache of the first positions; None = none of them are computed."""
    length: int
    """Number of positions, computed or not."""


class History:
    """Turns of one conversation that the next prompt follows, and the KV cache that is parked between turns.

    The turns of unfinished requests are in the list, too. They are computed one after another: a turn begins when all
    before it have ended. Turns may be edited meanwhile; an answer that has begun does not take note of it.

    Any thread may call the methods, except those for the running batch.

    Args:
        model: model that answers.
        max_positions: maximum number of positions of prompts and answers; None = those of the backbone.
    """

    def __init__(self, model: OmniLM, max_positions: int | None = None):
        self.model = model
        self.max_positions = model.llm.max_positions if max_positions is None else max_positions
        self.turns: list[Turn] = []
        self.dropped: list[tuple[str | None, str | None, Sequence[int]]] = []
        """Keys, questions and answers, see `texts`, of turns that were dropped at the limit of positions."""
        self.parked: Parked | None = None
        """KV cache of a sequence that begins like this one; None = no position is computed."""
        self._lock = RLock()
        self._unchanged = 0  # number of first positions that `parked` has in common with the sequence
        self._unchanged_of_running = _ALL  # the same of the KV cache of the turn that is being computed
        self._start = 0  # position at which the prompt of that turn begins

    @property
    def length(self) -> int:
        """Number of positions of all turns whose answers have ended."""
        with self._lock:
            return sum(turn.length for turn in self.turns)

    def texts(self) -> list[tuple[str | None, Sequence[int]]]:
        """Return the text of the question, None for a spoken one, and the text ids of the answer of all turns so far.
        """
        with self._lock:
            whole = [(turn.question, turn.text) for turn in self.turns if turn.whole]
            return [*((question, text) for _, question, text in self.dropped), *whole]

    def unfinished(self) -> list[Request]:
        """Return the requests of this conversation that have not ended, in the order in which they were submitted."""
        with self._lock:
            return [turn.request for turn in self.turns if turn.request is not None]

    def last(self) -> Turn | None:
        """Return the last turn whose answer has ended; None = there is none."""
        with self._lock:
            return next((turn for turn in reversed(self.turns) if turn.whole), None)

    def find(self, key: str) -> Turn:
        """Return the turn that has a key, whether or not its answer has ended.

        Raises:
            UnknownTurn: no turn has it, or the turn was dropped.
        """
        with self._lock:
            found = next((turn for turn in self.turns if turn.key == key), None)
            if found is None:
                raise self._unknown(key)
            return found

    def _unknown(self, key: str | None) -> UnknownTurn:
        """Return the error for a turn that is not among the turns any more, or never was."""
        name = "turn" if key is None else f"turn {key}"
        if any(key == each for each, *_ in self.dropped):
            return UnknownTurn(f"{name}: it was dropped, as the conversation had reached its limit of positions")
        return UnknownTurn(f"{name}: the conversation has none of this name, or does not remember its answer")

    def check_new(self, key: str | None) -> None:
        """Check that no turn has a key.

        Raises:
            ValueError: a turn has it, be it one that was dropped.
        """
        with self._lock:
            keys = [*(turn.key for turn in self.turns), *(each for each, *_ in self.dropped)]
        if key is not None and key in keys:
            raise ValueError(f"turn {key}: the conversation has a turn of this name already")

    # edits

    def clear(self) -> None:
        """Forget all turns; the caller makes sure that all requests have ended."""
        with self._lock:
            self.turns, self.dropped, self.parked, self._unchanged = [], [], None, 0

    def crop(self, turn: Turn, frames: int) -> None:
        """Cut the answer of a turn to its first frames and the same share of its text, see `omnikit.turns.heard_part`.

        The positions of the answer, and those of the turns after it, are computed anew with the next prompt.

        Raises:
            UnknownTurn: the turn was dropped or removed since it was found.
        """
        with self._lock:
            self._check_kept(turn)
            if frames < turn.codes.shape[1]:
                self._changes(turn, turn.prompt.shape[1])
                self._lay_out(turn, frames)

    def forget(self, turn: Turn) -> None:
        """Remove a turn; the positions of the turns after it are computed anew with the next prompt.

        Raises:
            UnknownTurn: the turn was dropped or removed since it was found.
        """
        with self._lock:
            self._check_kept(turn)
            self._changes(turn)
            self.turns.remove(turn)

    def _check_kept(self, turn: Turn) -> None:
        """Raise `UnknownTurn` for a turn that the decoding thread has dropped since it was found."""
        if turn not in self.turns:
            raise self._unknown(turn.key)

    def remember(self, key: str | None, question: str, asked: Sequence[int], answer: Sequence[int]) -> None:
        """Append a turn with a written question and a written answer, after those of all unfinished requests.

        Its positions are computed with the next prompt.

        Args:
            key: name of the turn.
            question: text of the question.
            asked: text ids of the question.
            answer: text ids of the answer.

        Raises:
            ValueError: the turn has more positions than the conversation may have.
        """
        task = TASKS["T1T2"]
        steps = make_sample(task, self.model.layout, self.model.pattern, question=asked, answer=answer).whole
        prompt, length = prompt_length(len(asked)), steps.shape[1]
        if self.max_positions is not None and length > self.max_positions:
            raise ValueError(f"turn of {length} positions; the conversation has {self.max_positions}")
        whole = torch.from_numpy(steps)
        turn = Turn(task, key, question, whole[:, :prompt], None, whole[:, prompt:], list(answer))
        turn.codes = torch.zeros(self.model.pattern.num_codebooks, 0, dtype=torch.long)
        with self._lock:
            self.turns.append(turn)

    def _changes(self, turn: Turn, after: int = 0) -> None:
        """Note that the sequence changes from a position of a turn on, counted from the turn's first one."""
        before = self.turns[: self.turns.index(turn)]
        if all(each.whole for each in before):  # otherwise no KV cache holds the turn
            self._changes_from(sum(each.length for each in before) + after)

    def _changes_from(self, position: int) -> None:
        self._unchanged = min(self._unchanged, position)
        self._unchanged_of_running = min(self._unchanged_of_running, position)

    # for the running batch

    def expect(self, turn: Turn, request: Request) -> None:
        """Append the turn that a request is to compute."""
        with self._lock:
            turn.request = request
            self.turns.append(turn)

    def may_begin(self, turn: Turn) -> bool:
        """Return whether all turns before one have ended."""
        with self._lock:
            return next((each for each in self.turns if not each.whole), turn) is turn

    def begin(self, turn: Turn, prompt: Tensor, speech: AdaptedSpeech | None, answer: int) -> Before:
        """Begin to compute a turn, and return what its prompt follows, after room was made for it.

        Args:
            turn: the turn, all turns before which have ended.
            prompt: steps of its prompt [S, L].
            speech: adapted features of a spoken question.
            answer: maximum number of steps of its answer.
        """
        with self._lock:
            turn.prompt, turn.speech = prompt, speech
            turns = self.turns[: self.turns.index(turn)]
            turns = turns[self._make_room(turns, prompt.shape[1], answer) :]
            self._crop_parked()
            self._unchanged_of_running = _ALL
            self._start = sum(each.length for each in turns)
            # edits change the turns meanwhile, but never the tensors
            parts = [part for each in turns for part in ((each.prompt, each.speech), (each.answer, None))]
            parked = self.parked
        return Before(self._embed(parts, 0 if parked is None else parked.length), parked, self._start)

    def _make_room(self, turns: Sequence[Turn], prompt: int, answer: int) -> int:
        """Drop the oldest turns if too few positions are left for another turn; return the number of dropped ones.

        So many are dropped that at most half of the positions are in use; the turns that are left are computed anew,
        from position 0.

        Args:
            turns: turns before the next prompt.
            prompt: number of positions of the next prompt.
            answer: maximum number of steps of its answer; a quarter of all positions has to suffice.
        """
        most, length = self.max_positions, sum(turn.length for turn in turns)
        if most is None:
            return 0
        needed, drop = prompt + min(answer, most // 4), 0
        if length + needed <= most:
            return 0
        while drop < len(turns) and (length > most // 2 or length + needed > most):
            length -= turns[drop].length
            drop += 1
        self.dropped += [(turn.key, turn.question, turn.text) for turn in turns[:drop]]
        del self.turns[:drop]
        self._changes_from(0)
        return drop

    def _crop_parked(self) -> None:
        """Crop the parked KV cache to the positions that did not change; one that cannot be cropped is computed anew.
        """
        kept = self._unchanged
        try:
            if self.parked is not None and 0 < kept < self.parked.length:
                self.parked.crop(kept)
        except ValueError:
            kept = 0
        if not kept:
            self.parked = None
        self._unchanged = 0 if self.parked is None else self.parked.length

    def _embed(self, parts: Sequence[tuple[Tensor, AdaptedSpeech | None]], done: int) -> list[Tensor]:
        """Return the embeddings [L_i, D] of steps [S, L] one after another, without the first `done` positions.

        Args:
            parts: steps, and the adapted features that stand in them.
            done: number of positions to leave out.
        """
        found, device = [], self.model.device
        for steps, speech in parts:
            begin, done = min(done, steps.shape[1]), max(0, done - steps.shape[1])
            if begin == steps.shape[1]:
                continue
            first = 0 if speech is not None else begin  # the positions of speech count from the first step
            found.append(self.model.embed(steps[None, :, first:].to(device), speech)[0, begin - first :])
        return found

    def complete(
        self, turn: Turn, steps: Sequence[Sequence[int]], end: str, closing: Sequence[int] | None, parked: Parked
    ) -> None:
        """Remember the answer of the turn that was begun last, and the KV cache of the sequence after it.

        Args:
            turn: the turn.
            steps: emitted steps of the answer, S ids each.
            end: reason for which the answer ended; a truncated one is closed after its last complete frame.
            closing: ids [S] of the step that ended the answer, which was not emitted; None = it was truncated.
            parked: KV cache of at least the prompt, and of all emitted steps if the answer was not truncated.
        """
        answer = read_answer(self.model, turn.task, steps, end)
        with self._lock:
            kept = self._start + turn.prompt.shape[1]
            turn.text, turn.codes = answer.text, answer.codes
            if end == END and closing is not None:
                turn.answer = torch.tensor([*steps, self._close(closing, len(answer.text) == len(steps))]).T
                kept += len(steps)
            else:
                self._lay_out(turn, answer.codes.shape[1])
            self.parked, self._unchanged = parked, min(kept, self._unchanged_of_running)

    def settle(self, turn: Turn) -> None:
        """Note that the request of a turn has ended; the turn is removed if its answer is not remembered."""
        with self._lock:
            turn.request = None
            if not turn.whole and turn in self.turns:
                self.turns.remove(turn)

    def _close(self, closing: Sequence[int], text_runs: bool) -> list[int]:
        """Return the closing step [S] of an answer, with `eot` if its text had not ended before."""
        text = self.model.layout.text
        return [text.eot if text_runs else text.pad, *closing[1:]]

    def _lay_out(self, turn: Turn, frames: int) -> None:
        """Cut an answer to its first frames, and lay out its steps like those of a training sample."""
        if turn.task.speaks:
            turn.text, turn.codes = heard_part(turn.text, turn.codes, frames)
        given = {"question": [], "audio_frames": 0, "answer": turn.text}
        codes = turn.codes.cpu() if turn.task.speaks else None
        sample = make_sample(turn.task, self.model.layout, self.model.pattern, **given, codes=codes)
        turn.answer = torch.from_numpy(sample.whole[:, prompt_length(0) :])
