"""The history of a conversation: its turns as steps of one sequence, and the parked KV cache of that sequence.

A conversation is one sequence (`omnikit.turns`). Its parked KV cache holds the first positions; the positions after
them are computed together with the next prompt. Usually that is the closing step of the last answer alone. After an
interruption it is the whole answer, which was laid out anew; after turns were dropped it is everything that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnikit.generate.detokenize import read_answer
from omnikit.generate.types import END
from omnikit.interfaces import Parked
from omnikit.model import OmniLM
from omnikit.tasks import Task, make_sample, prompt_length
from omnikit.turns import heard_part


@dataclass
class Turn:
    """One question and its answer in a conversation."""

    question: str | None
    """Text of a written question; None for a spoken one."""
    task: Task
    prompt: Tensor
    """Embeddings of the prompt [L, D], which hold the adapted features of a spoken question."""
    answer: Tensor
    """Steps of the answer [S, A], its closing step included."""
    text: list[int]
    """Text ids of the answer, without `eot`."""
    codes: Tensor
    """Codes [K, T] of the answer's audible frames; T = 0 where it is text only."""

    @property
    def length(self) -> int:
        """Number of positions of prompt and answer."""
        return len(self.prompt) + self.answer.shape[1]


class History:
    """Turns of one conversation that the next prompt follows, and the KV cache that is parked between turns.

    While a turn is computed, only the thread that steps the running batch may use it.

    Args:
        model: model that answers.
        max_positions: maximum number of positions of prompts and answers; None = those of the backbone.
    """

    def __init__(self, model: OmniLM, max_positions: int | None = None):
        self.model = model
        self.max_positions = model.llm.max_positions if max_positions is None else max_positions
        self.turns: list[Turn] = []
        self.dropped: list[tuple[str | None, list[int]]] = []
        """Questions and answers, see `texts`, of turns that were dropped because the sequence had reached its limit."""
        self.asked: str | None = None
        """Text of the written question of the turn that is being computed; None for a spoken one."""
        self.parked: Parked | None = None
        """KV cache of the first positions of the sequence; None = none of them are computed."""

    @property
    def length(self) -> int:
        """Number of positions of all turns."""
        return sum(turn.length for turn in self.turns)

    def texts(self) -> list[tuple[str | None, list[int]]]:
        """Return the text of the question, None for a spoken one, and the text ids of the answer of all turns so far.
        """
        return [*self.dropped, *((turn.question, turn.text) for turn in self.turns)]

    def clear(self) -> None:
        """Forget all turns."""
        self.turns, self.dropped, self.parked = [], [], None

    def make_room(self, prompt: int, answer: int) -> None:
        """Drop the oldest turns if the sequence has too few positions left for another turn.

        So many are dropped that at most half of the positions are in use; the turns that are left are computed anew,
        from position 0.

        Args:
            prompt: number of positions of the next prompt.
            answer: maximum number of steps of its answer; a quarter of all positions has to suffice.
        """
        most = self.max_positions
        if most is None:
            return
        needed = prompt + min(answer, most // 4)
        if self.length + needed <= most:
            return
        self.parked = None
        while self.turns and (self.length > most // 2 or self.length + needed > most):
            oldest = self.turns.pop(0)
            self.dropped.append((oldest.question, oldest.text))

    def pending(self) -> list[Tensor]:
        """Return the embeddings [L_i, D] of the positions that the parked KV cache does not hold."""
        done, found = 0 if self.parked is None else self.parked.length, []
        for turn in self.turns:
            if done < len(turn.prompt):
                found.append(turn.prompt[done:])
            done = max(0, done - len(turn.prompt))
            if done < turn.answer.shape[1]:
                found.append(self.model.embed(turn.answer[None, :, done:].to(self.model.device))[0])
            done = max(0, done - turn.answer.shape[1])
        return found

    def append(
        self,
        task: Task,
        prompt: Tensor,
        steps: Sequence[Sequence[int]],
        end: str,
        closing: Sequence[int] | None,
        parked: Parked,
    ) -> None:
        """Append a turn and the KV cache of the sequence after it.

        Args:
            task: task of the turn.
            prompt: embeddings of its prompt [L, D].
            steps: emitted steps of the answer, S ids each.
            end: reason for which the answer ended; a truncated one is closed after its last complete frame.
            closing: ids [S] of the step that ended the answer, which was not emitted; None = it was truncated.
            parked: KV cache of at least the prompt, and of all emitted steps if the answer was not truncated.
        """
        answer, before = read_answer(self.model, task, steps, end), self.length + len(prompt)
        turn = Turn(self.asked, task, prompt, torch.empty(0), answer.text, answer.codes)
        if end == END and closing is not None:
            whole = [*steps, self._close(closing, len(answer.text) == len(steps))]
            turn.answer = torch.tensor(whole).T
            self._park(parked, before + len(steps))
        else:
            self._lay_out(turn, answer.codes.shape[1])
            self._park(parked, before)
        self.turns.append(turn)

    def _close(self, closing: Sequence[int], text_runs: bool) -> list[int]:
        """Return the closing step [S] of an answer, with `eot` if its text had not ended before."""
        text = self.model.layout.text
        return [text.eot if text_runs else text.pad, *closing[1:]]

    def keep_frames(self, frames: int) -> None:
        """Cut the last answer to its first frames and the same share of its text, see `omnikit.turns.heard_part`.

        Its positions are computed anew together with the next prompt.
        """
        turn = self.turns[-1]
        if frames < turn.codes.shape[1]:
            self._lay_out(turn, frames)
            self._park(self.parked, self.length - turn.answer.shape[1])

    def _lay_out(self, turn: Turn, frames: int) -> None:
        """Cut an answer to its first frames, and lay out its steps like those of a training sample."""
        if turn.task.speaks:
            turn.text, turn.codes = heard_part(turn.text, turn.codes, frames)
        given = {"question": [], "audio_frames": 0, "answer": turn.text}
        codes = turn.codes.cpu() if turn.task.speaks else None
        sample = make_sample(turn.task, self.model.layout, self.model.pattern, **given, codes=codes)
        turn.answer = torch.from_numpy(sample.whole[:, prompt_length(0) :])

    def _park(self, parked: Parked | None, length: int) -> None:
        """Set the parked KV cache, cropped to its first positions; one that cannot be cropped is computed anew."""
        try:
            if parked is not None and parked.length > length:
                parked.crop(length)
        except ValueError:
            parked = None
        self.parked = parked
